//! `share-memory DEVICE ROUNDS`: has the kernel allocate memory for a device and free it again, so many times. In a realm each such buffer becomes shared with
//! the host and is taken back.
//!
//! Invariant: when it has ended well, each buffer that it was given has been freed.
//!
//! The device is one of Linux's `vivid`, which has no hardware and takes its buffers as devices with DMA do (`allocators=1 cache_hints=1`). They are asked for
//! non-coherent: a coherent buffer of a device that does not snoop is another mapping of its pages, whose own mapping stays as it is.

use std::{env, fs::File, os::fd::AsRawFd, process::ExitCode};

use anyhow::{Context, Result, ensure};

/// `struct v4l2_requestbuffers` (linux/videodev2.h).
#[repr(C)]
#[derive(Default)]
struct RequestBuffers {
    count: u32,
    kind: u32,
    memory: u32,
    capabilities: u32,
    flags: u8,
    reserved: [u8; 3],
}

/// `_IOWR('V', 8, struct v4l2_requestbuffers)`.
const REQUEST_BUFFERS: libc::c_ulong = 0xc014_5608;
const VIDEO_CAPTURE: u32 = 1;
const MEMORY_MMAP: u32 = 1;
const NON_COHERENT: u8 = 1;
/// The device takes the flag above for what it is.
const CACHE_HINTS: u32 = 1 << 6;
/// Buffers of a round.
const BUFFERS: u32 = 4;

/// Has the device allocate `count` buffers in place of those that it has; returns what it says.
fn request(device: &File, count: u32) -> Result<RequestBuffers> {
    let mut request = RequestBuffers {
        count,
        kind: VIDEO_CAPTURE,
        memory: MEMORY_MMAP,
        flags: NON_COHERENT,
        ..RequestBuffers::default()
    };
    // SAFETY: the descriptor is open, the number of the request says what structure it takes, and that one lives and is not
    // used by others until the call is over.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), REQUEST_BUFFERS as _, &raw mut request) };
    ensure!(result == 0, "the request for {count} buffers failed: {}", std::io::Error::last_os_error());
    Ok(request)
}

fn share(device: &str, rounds: u32) -> Result<u32> {
    let file = File::options().read(true).write(true).open(device).with_context(|| format!("no {device}"))?;
    let mut buffers = 0;
    for _ in 0..rounds {
        let got = request(&file, BUFFERS)?;
        ensure!(got.capabilities & CACHE_HINTS != 0, "{device} takes no hints: load it with cache_hints=1");
        ensure!(got.count > 0, "there are no buffers");
        buffers += got.count;
        request(&file, 0)?;
    }
    Ok(buffers)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [device, rounds] = arguments.as_slice() else {
        eprintln!("share-memory DEVICE ROUNDS");
        return ExitCode::FAILURE;
    };
    match rounds.parse().context("ROUNDS is a number").and_then(|rounds| share(device, rounds)) {
        Ok(buffers) => {
            println!("{buffers} buffers shared and taken back");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
