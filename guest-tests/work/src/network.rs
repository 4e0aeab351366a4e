//! Transfers by TCP: to a thread of the same process, and through the network card to an echo outside.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

use crate::Shift;

/// Where the emulator's user network sends back what it gets.
const ECHO: ([u8; 4], u16) = ([10, 0, 2, 100], 7);
/// What is silent for so long does not answer any more.
const SILENCE: Duration = Duration::from_secs(60);

/// Sends to a listener of its own, which answers with the checksum.
pub fn loopback(shift: &mut Shift) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("there is no loopback")?;
    let address = listener.local_addr()?;
    while shift.goes_on() {
        let (data, expected) = shift.data(4 << 20);
        let got = thread::scope(|scope| {
            let receiver = scope.spawn(|| -> Result<u32> {
                let (mut stream, _) = listener.accept()?;
                let mut received = Vec::new();
                stream.read_to_end(&mut received)?;
                Ok(crc32fast::hash(&received))
            });
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(&data)?;
            drop(stream);
            receiver.join().map_err(|_| anyhow!("the receiver panicked"))?
        })?;
        shift.compare("what came by loopback", data.len(), expected, got)?;
    }
    Ok("TCP".to_owned())
}

/// Sends out and compares what comes back.
pub fn echo(shift: &mut Shift) -> Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::from(ECHO), SILENCE).context("there is no echo")?;
    stream.set_read_timeout(Some(SILENCE))?;
    while shift.goes_on() {
        let (data, expected) = shift.data(512 << 10);
        let mut sender = stream.try_clone()?;
        let got = thread::scope(|scope| {
            let sending = scope.spawn(|| sender.write_all(&data));
            let mut received = vec![0; data.len()];
            stream.read_exact(&mut received).context("the echo fell silent")?;
            sending.join().map_err(|_| anyhow!("the sender panicked"))??;
            anyhow::Ok(crc32fast::hash(&received))
        })?;
        shift.compare("what came back", data.len(), expected, got)?;
    }
    Ok("TCP through eth0".to_owned())
}
