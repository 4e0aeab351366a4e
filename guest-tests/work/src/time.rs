//! Counters and timers.

use std::{
    fs::File,
    hint::black_box,
    io::Read,
    os::fd::FromRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use perf_event::{Builder, events::Hardware};
use rand::RngExt;

use crate::{Shift, os_error};

/// Counts the cycles of work that it does: more with each work, and none while it is stopped.
pub fn perf(shift: &mut Shift) -> Result<String> {
    let mut counter = Builder::new(Hardware::CPU_CYCLES).build().context("the PMU counts no cycles")?;
    let mut before = 0;
    while shift.goes_on() {
        counter.enable()?;
        black_box((0..100_000u64).fold(0, |sum: u64, n| black_box(sum ^ n)));
        counter.disable()?;
        let count = counter.read()?;
        ensure!(count > before, "{count} cycles after work, {before} before it");
        black_box((0..10_000u64).fold(0, |sum: u64, n| black_box(sum ^ n)));
        let idle = counter.read()?;
        ensure!(idle == count, "{idle} cycles when stopped at {count}");
        before = count;
        thread::sleep(Duration::from_millis(5));
    }
    shift.figures.push(("perf.counted", before, "counts"));
    Ok("cycles, counted by the PMU".to_owned())
}

const PERIOD: Duration = Duration::from_millis(5);
/// How late a timer may be on a machine that has more to do than it can.
const LATEST: Duration = Duration::from_secs(30);

/// A timer that expires all the time, and sleeps: none early, none lost.
pub fn timers(shift: &mut Shift) -> Result<String> {
    // The timer starts between the two, which may be far apart.
    let earliest = Instant::now();
    let mut ticking = ticking()?;
    let (start, mut ticks, mut latest) = (Instant::now(), 0, Duration::ZERO);
    while shift.goes_on() {
        let sleep = Duration::from_micros(shift.random.random_range(0..20_000));
        let before = Instant::now();
        thread::sleep(sleep);
        let slept = before.elapsed();
        ensure!(slept >= sleep, "a sleep of {sleep:?} took {slept:?}");
        latest = latest.max(slept - sleep);
        ensure!(latest < LATEST, "a sleep of {sleep:?} took {slept:?}");

        let due = periods(start.elapsed());
        let mut count = [0; 8];
        ticking.read_exact(&mut count)?;
        ticks += u64::from_le_bytes(count);
        let most = periods(earliest.elapsed());
        ensure!((due..=most).contains(&ticks), "{ticks} ticks, not {due} to {most}");
    }
    shift.figures.push(("timers.latest", latest.as_micros() as u64, "us"));
    Ok(format!("{ticks} ticks"))
}

fn periods(time: Duration) -> u64 {
    (time.as_nanos() / PERIOD.as_nanos()) as u64
}

/// A timer whose reads tell how often it has expired since the last one.
fn ticking() -> Result<File> {
    let period = libc::timespec { tv_sec: 0, tv_nsec: PERIOD.as_nanos() as _ };
    let setting = libc::itimerspec { it_interval: period, it_value: period };
    // SAFETY: makes a descriptor that is nobody else's, and reads the setting.
    unsafe {
        let timer = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC);
        if timer < 0 {
            return Err(os_error("timerfd_create"));
        }
        let file = File::from_raw_fd(timer);
        if libc::timerfd_settime(timer, 0, &setting, std::ptr::null_mut()) != 0 {
            return Err(os_error("timerfd_settime"));
        }
        Ok(file)
    }
}
