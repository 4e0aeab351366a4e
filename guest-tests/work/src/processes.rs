//! Processes: memory that is shared until somebody writes, programs, pipes.

use std::{
    io::{PipeWriter, Read, Write, pipe},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{Shift, os_error};

const MEMORY: usize = 4 << 20;
const PIPED: usize = 256 << 10;

/// A child that changes the memory it shares with its parent, and a program that sums what comes by a pipe.
pub fn fork_and_exec(shift: &mut Shift) -> Result<String> {
    while shift.goes_on() {
        let (mut memory, before) = shift.data(MEMORY);
        let inverted: Vec<u8> = memory.iter().map(|byte| !byte).collect();
        let (expected, seen) = (crc32fast::hash(&inverted), in_child(&mut memory)?);
        shift.compare("what the child was given", MEMORY, before, seen[0])?;
        shift.compare("what the child has written", MEMORY, expected, seen[1])?;
        shift.compare("what the parent has left", MEMORY, before, crc32fast::hash(&memory))?;

        let (data, expected) = shift.data(PIPED);
        let mut program = Command::new("/proc/self/exe")
            .arg("sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a program")?;
        program.stdin.take().context("no pipe")?.write_all(&data)?;
        let output = program.wait_with_output()?;
        ensure!(output.status.success(), "the program ended with {}", output.status);
        let got = String::from_utf8(output.stdout)?.trim().parse().context("the program said no number")?;
        shift.compare("what the program was given", PIPED, expected, got)?;
    }
    Ok("fork and exec".to_owned())
}

/// The checksums that a child finds in `memory`, and after it has inverted it.
fn in_child(memory: &mut [u8]) -> Result<[u32; 2]> {
    let (mut reader, writer) = pipe()?;
    // SAFETY: this process has one thread, so its child can do what it could.
    match unsafe { libc::fork() } {
        -1 => Err(os_error("fork")),
        0 => {
            let told = tell(memory, writer);
            // SAFETY: ends the child without running what is the parent's to run.
            unsafe { libc::_exit(i32::from(told.is_err())) }
        }
        child => {
            drop(writer);
            let mut answer = [0; 8];
            let read = reader.read_exact(&mut answer);
            let mut status = 0;
            // SAFETY: waits for a child of its own, and writes its status only.
            if unsafe { libc::waitpid(child, &mut status, 0) } != child {
                return Err(os_error("waitpid"));
            }
            ensure!(status == 0, "the child ended with status {status:#x}");
            read.context("the child said nothing")?;
            let [a, b, c, d, e, f, g, h] = answer;
            Ok([u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])])
        }
    }
}

fn tell(memory: &mut [u8], mut to: PipeWriter) -> Result<()> {
    let given = crc32fast::hash(memory);
    memory.iter_mut().for_each(|byte| *byte = !*byte);
    to.write_all(&[given, crc32fast::hash(memory)].map(u32::to_le_bytes).concat())?;
    Ok(())
}
