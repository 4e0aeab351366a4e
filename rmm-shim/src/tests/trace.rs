//! What is told of calls: each line to the letter.

use std::cell::RefCell;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;

use hyp::el2::guests::Traced;

use super::*;
use crate::fake::MIB;
use crate::trace::{Kept, Moment, Trace};

const ALL: Traced = Traced { rsi: true, rmi: true, ripas: true };
const RSI: Traced = Traced { rsi: true, ..Traced::NOTHING };
const RMI: Traced = Traced { rmi: true, ..Traced::NOTHING };
const RIPAS: Traced = Traced { ripas: true, ..Traced::NOTHING };

thread_local! {
    static TOLD: RefCell<String> = const { RefCell::new(String::new()) };
}

fn tell(text: fmt::Arguments<'_>) -> fmt::Result {
    TOLD.with_borrow_mut(|told| fmt::Write::write_fmt(told, text))
}

fn traced(of: Traced) -> Fake {
    let fake = Fake::traced(64 * MIB, Trace::new(of, tell, Box::leak(Box::new(Kept::new()))));
    *fake.cpus().moment.lock().unwrap() = Moment { cpu: 0, ticks: 7, frequency: 1000 };
    fake
}

/// What was told since this was asked.
fn told() -> Vec<String> {
    TOLD.take().lines().map(str::to_owned).collect()
}

/// The same, with what was kept back.
fn all_told(fake: &Fake) -> Vec<String> {
    fake.monitor.tell_kept();
    told()
}

/// An active realm of which nothing was told so far.
fn scene(of: Traced) -> Scene {
    let scene = Scene::of(traced(of)).activated(2);
    all_told(scene.fake);
    scene
}

#[test]
fn calls_of_the_host_that_go_on_alike_are_one_line() {
    let fake = traced(RMI);
    let start = fake.granules(8, 8 * PAGE);
    for granule in 0..8 {
        fake.ok(GranuleDelegate, &[start + granule * PAGE]);
    }
    // Nothing yet: it may go on.
    assert_eq!(told(), Vec::<String>::new());
    fake.status(GranuleDelegate, &[start + 1]);
    fake.ok(GranuleUndelegate, &[start]);
    fake.call(Version, &[0x1_0000]);
    let (first, last, odd) = (start, start + 7 * PAGE, start + 1);
    assert_eq!(
        all_told(&fake),
        [
            format!("rmi cpu0 @7 RMI_GRANULE_DELEGATE addr={first:#x}..{last:#x} -> RMI_SUCCESS x8"),
            format!("rmi cpu0 @7 RMI_GRANULE_DELEGATE addr={odd:#x} -> RMI_ERROR_INPUT"),
            format!("rmi cpu0 @7 RMI_GRANULE_UNDELEGATE addr={first:#x} -> RMI_SUCCESS"),
            "rmi cpu0 @7 RMI_VERSION req=0x10000 -> RMI_SUCCESS lower=1.0 higher=1.0".to_owned(),
        ]
    );
}

#[test]
fn a_run_has_one_step() {
    let fake = traced(RMI);
    let start = fake.granules(2048, 2 * MIB);
    // A page further, then two: the second is no step of a table's, and the third another than before.
    for page in [0, 1, 3, 4, 5, 517, 516, 515] {
        fake.ok(GranuleDelegate, &[start + page * PAGE]);
    }
    let line = |first: u64, last: u64, count: u64| {
        let (first, last) = (start + first * PAGE, start + last * PAGE);
        match count {
            1 => format!("rmi cpu0 @7 RMI_GRANULE_DELEGATE addr={first:#x} -> RMI_SUCCESS"),
            _ => {
                format!("rmi cpu0 @7 RMI_GRANULE_DELEGATE addr={first:#x}..{last:#x} -> RMI_SUCCESS x{count}")
            }
        }
    };
    // 5 to 517 is 2 MiB; and a run may go down.
    let lines = [line(0, 1, 2), line(3, 5, 3), line(517, 515, 3)];
    assert_eq!(all_told(&fake), lines);
}

#[test]
fn runs_are_told_beside_each_other_only_if_they_went_in_turn() {
    let fake = traced(RMI);
    let start = fake.granules(4, 4 * PAGE);
    let page = |number: u64| start + number * PAGE;
    for number in 0..2 {
        fake.ok(GranuleDelegate, &[page(number)]);
        fake.call(Version, &[0x1_0000]);
    }
    fake.ok(GranuleDelegate, &[page(2)]);
    // Out of turn.
    fake.ok(GranuleDelegate, &[page(3)]);
    fake.call(Version, &[0x1_0000]);
    fake.call(Version, &[0x1_0000]);
    for _ in 0..2 {
        fake.ok(GranuleUndelegate, &[page(0)]);
        fake.ok(GranuleDelegate, &[page(0)]);
    }
    // Without what is alike in all of them.
    let lines: Vec<_> = all_told(&fake)
        .into_iter()
        .map(|line| line.replace("rmi cpu0 @7 RMI_", "").replace(" -> RMI_SUCCESS", ""))
        .collect();
    let delegate =
        |first: u64, last: u64| format!("GRANULE_DELEGATE addr={:#x}..{:#x}", page(first), page(last));
    let (first, fourth) = (page(0), page(3));
    assert_eq!(
        lines,
        [
            format!("{} x3 turn=1/2", delegate(0, 2)),
            "VERSION req=0x10000 lower=1.0 higher=1.0 x2 turn=2/2".to_owned(),
            format!("GRANULE_DELEGATE addr={fourth:#x}"),
            "VERSION req=0x10000 lower=1.0 higher=1.0 x2".to_owned(),
            format!("GRANULE_UNDELEGATE addr={first:#x} x2 turn=1/2"),
            format!("GRANULE_DELEGATE addr={first:#x} x2 turn=2/2"),
        ]
    );
}

#[test]
fn lines_that_the_device_does_not_take_are_counted() {
    thread_local! {
        static IS_STUCK: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    fn tell_unless_stuck(text: fmt::Arguments<'_>) -> fmt::Result {
        if IS_STUCK.get() { Err(fmt::Error) } else { tell(text) }
    }
    let fake = Fake::traced(64 * MIB, Trace::new(RMI, tell_unless_stuck, Box::leak(Box::new(Kept::new()))));
    let call = |is_stuck| {
        IS_STUCK.set(is_stuck);
        fake.call(Version, &[0x1_0000]);
        all_told(&fake)
    };
    assert_eq!(call(false).len(), 1);
    assert!(call(true).is_empty() && call(true).is_empty());
    let lines = call(false);
    assert_eq!((lines.len(), &*lines[0], &*lines[1]), (3, "", "trace lost 2"));
    assert_eq!(call(false).len(), 1);
}

#[test]
fn lines_are_written_while_nobody_waits_for_the_cpu() {
    let fake = traced(RMI);
    fake.call(Version, &[0x1_0000]);
    let stood = fake.cpus().stood.load(SeqCst);
    assert_eq!(all_told(&fake).len(), 1);
    assert_eq!(fake.cpus().stood.load(SeqCst), stood + 1);
}

#[test]
fn what_is_kept_is_told_in_its_order_before_a_realm_runs_and_when_it_is_old() {
    let scene = scene(RMI);
    let fake = scene.fake;
    let (a, b) = (fake.granule(), fake.granule());
    fake.ok(GranuleDelegate, &[a]);
    fake.ok(GranuleUndelegate, &[a]);
    assert!(told().is_empty());
    scene.irq();
    scene.exit();
    let lines = told();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("RMI_GRANULE_DELEGATE") && lines[1].contains("RMI_GRANULE_UNDELEGATE"),
        "{lines:?}"
    );
    // Entries that end alike are one line, for a second.
    for _ in 0..3 {
        scene.irq();
        scene.exit();
    }
    assert!(told().is_empty());
    *fake.cpus().moment.lock().unwrap() = Moment { cpu: 1, ticks: 2000, frequency: 1000 };
    fake.ok(GranuleDelegate, &[b]);
    let (rec, run) = (scene.recs[0], scene.run);
    let line = format!("rmi cpu0 @7 RMI_REC_ENTER rec={rec:#x} run_ptr={run:#x} -> RMI_SUCCESS exit=IRQ x4");
    assert_eq!(told(), [line]);
    assert!(all_told(fake)[0].starts_with("rmi cpu1 @2000 RMI_GRANULE_DELEGATE"));
}

#[test]
fn more_cpus_than_there_are_places_lose_nothing() {
    let fake = traced(RMI);
    for cpu in (0..20).chain(0..20) {
        fake.cpus().moment.lock().unwrap().cpu = cpu;
        fake.call(Version, &[0x1_0000]);
    }
    let lines = all_told(&fake);
    let of = |cpu: usize| -> usize {
        let of: Vec<_> = lines.iter().filter(|line| line.starts_with(&format!("rmi cpu{cpu} "))).collect();
        of.iter().map(|line| line.rsplit_once(" x").map_or(1, |(_, count)| count.parse().unwrap())).sum()
    };
    assert!((0..20).all(|cpu| of(cpu) == 2), "{lines:?}");
}

#[test]
fn ripas_is_told_from_what_to_what() {
    let fake = traced(RIPAS);
    let rd = fake.realm();
    fake.rtts(rd, BASE, 3);
    fake.ok(RttInitRipas, &[rd, BASE, BASE + 2 * PAGE]);
    fake.ok(RttInitRipas, &[rd, BASE + 2 * PAGE, BASE + 4 * PAGE]);
    fake.data(rd, BASE);
    fake.ok(DataDestroy, &[rd, BASE]);
    // What changes nothing has no line.
    fake.status(DataDestroy, &[rd, BASE]);
    let (middle, end) = (BASE + PAGE, BASE + 4 * PAGE);
    assert_eq!(
        all_told(&fake),
        [
            format!("ripas cpu0 realm={rd:#x} @7 {BASE:#x}-{end:#x} EMPTY -> RAM"),
            format!("ripas cpu0 realm={rd:#x} @7 {BASE:#x}-{middle:#x} RAM -> DESTROYED"),
        ]
    );
}

#[test]
fn a_table_that_is_destroyed_takes_what_was_said_in_it() {
    let fake = traced(RIPAS);
    let rd = fake.realm();
    fake.rtts(rd, BASE, 3);
    fake.ok(RttInitRipas, &[rd, BASE + PAGE, BASE + 3 * PAGE]);
    fake.data(rd, BASE + PAGE);
    fake.ok(DataDestroy, &[rd, BASE + PAGE]);
    all_told(&fake);
    fake.ok(RttDestroy, &[rd, BASE, 3]);
    let line = |from: u64, to: u64, old: &str| {
        let (from, to) = (BASE + from * PAGE, BASE + to * PAGE);
        format!("ripas cpu0 realm={rd:#x} @7 {from:#x}-{to:#x} {old} -> DESTROYED")
    };
    // EMPTY, DESTROYED, RAM, and EMPTY to the end: what was DESTROYED stays so.
    assert_eq!(all_told(&fake), [line(0, 1, "EMPTY"), line(2, 3, "RAM"), line(3, 512, "EMPTY")]);
    fake.status(RttDestroy, &[rd, BASE, 3]);
    assert!(all_told(&fake).is_empty());
}

#[test]
fn a_change_over_what_was_different_is_told_by_what_it_was() {
    let scene = scene(RIPAS);
    let (fake, rd, rec) = (scene.fake, scene.rd, scene.recs[0]);
    let end = SPARE + PAGE;
    // DATA to ABSENT are RAM, EMPTY is EMPTY, DESTROYED is DESTROYED, SPARE is EMPTY.
    scene.rsi(RsiCommand::IpaStateSet, &[DATA, end, 0, 1]);
    scene.exit();
    fake.ok(RttSetRipas, &[rd, rec, DATA, end]);
    let lines = all_told(fake);
    let line = |start: u64, end: u64, old: &str| {
        format!("ripas cpu0 realm={rd:#x} @7 {start:#x}-{end:#x} {old} -> EMPTY")
    };
    assert_eq!(lines, [line(DATA, EMPTY, "RAM"), line(DESTROYED, DESTROYED + PAGE, "DESTROYED")]);
}

fn caller(scene: &Scene) -> String {
    format!("cpu0 realm={:#x} rec=0 @7", scene.rd)
}

#[test]
fn a_realms_call_is_told_with_its_answer() {
    let scene = scene(RSI);
    let caller = caller(&scene);
    let answer = scene.answered_by_rsi(RsiCommand::Version, &[0x1_0000]);
    assert_eq!(answer[..3], [0, 0x1_0000, 0x1_0000]);
    scene.answered_by_rsi(RsiCommand::IpaStateGet, &[DATA, EMPTY + PAGE]);
    scene.refused(RsiCommand::RealmConfig, &[1], "addr_align");
    scene.answered(&[0x8400_0050]);
    scene.answered(&[u64::from(PsciCommand::Version.fid())]);
    scene.answered(&[u64::from(PsciCommand::CpuOn.fid()), 1, SHARED, 7]);
    let (data, empty, end) = (DATA, EMPTY, EMPTY + PAGE);
    assert_eq!(
        told(),
        [
            format!("rsi {caller} RSI_VERSION req=1.0 -> RSI_SUCCESS lower=1.0 higher=1.0")
                .replace("req=1.0", "req=0x10000"),
            format!(
                "rsi {caller} RSI_IPA_STATE_GET base={data:#x} top={end:#x} -> RSI_SUCCESS out_top={empty:#x} ripas=RAM"
            ),
            format!("rsi {caller} RSI_REALM_CONFIG addr=0x1 -> RSI_ERROR_INPUT"),
            format!("smccc {caller} 0x84000050 x1=0x1 x2=0x10000 x3=0x0 -> NOT_SUPPORTED")
                .replace(" x1=0x1 x2=0x10000 x3=0x0", " x1=0x0 x2=0x0 x3=0x0"),
            format!("psci {caller} PSCI_VERSION -> 1.1"),
            format!(
                "psci {caller} PSCI_CPU_ON target_cpu=0x1 entry_point_address={SHARED:#x} context_id=0x7 -> PSCI_INVALID_ADDRESS"
            ),
        ]
    );
}

#[test]
fn a_change_of_ripas_is_told_when_it_is_answered_with_its_outcome() {
    let scene = scene(RSI);
    let (caller, rd, rec) = (caller(&scene), scene.rd, scene.recs[0]);
    let (data, more) = (DATA, MORE);
    let request = [DATA, ABSENT, 0, 1];
    scene.rsi(RsiCommand::IpaStateSet, &request);
    assert_eq!(scene.exit().ripas_base, DATA);
    assert!(told().is_empty());
    scene.fake.ok(RttSetRipas, &[rd, rec, DATA, MORE]);
    scene.irq();
    scene.exit();
    let line = |ripas, flags, base, response| {
        format!(
            "rsi {caller} RSI_IPA_STATE_SET base={base:#x} top={ABSENT:#x} ripas={ripas} flags={flags} -> RSI_SUCCESS new_base={more:#x} response={response}"
        )
    };
    assert_eq!(told(), [line("EMPTY", "CHANGE_DESTROYED", data, "ACCEPT")]);
    // Refused, without a step.
    scene.rsi(RsiCommand::IpaStateSet, &[MORE, ABSENT, 1, 0]);
    scene.exit();
    scene.irq();
    scene.exit_after(flagged(RmiRecEnterFlags::RIPAS_RESPONSE));
    assert_eq!(told(), [line("RAM", "0", more, "REJECT")]);
}

#[test]
fn what_waits_for_memory_is_told_once_and_what_the_host_does_when_it_is_asked() {
    let scene = scene(RSI);
    let caller = caller(&scene);
    scene.rsi(RsiCommand::RealmConfig, &[ABSENT]);
    scene.exit();
    assert!(told().is_empty());
    scene.rsi(RsiCommand::HostCall, &[DATA]);
    scene.exit();
    assert!(told().is_empty());
    scene.irq();
    scene.exit();
    assert_eq!(told(), [format!("rsi {caller} RSI_HOST_CALL addr={DATA:#x} -> RSI_SUCCESS")]);
    scene.smc(&[PsciCommand::SystemOff.fid().into()]);
    scene.exit();
    assert_eq!(told(), [format!("psci {caller} PSCI_SYSTEM_OFF -> HOST")]);
}

#[test]
fn why_a_rec_was_left_is_told_with_its_entry() {
    let scene = scene(RMI);
    let (rec, run) = (scene.recs[0], scene.run);
    let line =
        |exit: &str| format!("rmi cpu0 @7 RMI_REC_ENTER rec={rec:#x} run_ptr={run:#x} -> RMI_SUCCESS {exit}");
    scene.step(|_| synchronous(WORD, 0, UNMAPPED));
    scene.exit();
    scene.rsi(RsiCommand::IpaStateSet, &[DATA, MORE, 1, 0]);
    scene.exit();
    scene.smc(&[PsciCommand::SystemOff.fid().into()]);
    scene.exit();
    // The end of the realm: nothing is kept.
    let esr = (LOAD | ISV | 2 << 22) & exits::SEEN_OF_EMULATABLE;
    assert_eq!(
        told(),
        [
            line(&format!("exit=SYNC esr={esr:#x} ipa={UNMAPPED:#x}")),
            line(&format!("exit=RIPAS_CHANGE base={DATA:#x} top={MORE:#x} ripas=RAM")),
            line("exit=PSCI function=PSCI_SYSTEM_OFF"),
        ]
    );
    assert_eq!(scene.enter_rec(0, RmiRecEnter::zeroed()), RmiStatus::ErrorRealm(1));
    assert!(all_told(scene.fake)[0].ends_with("-> RMI_ERROR_REALM(1)"));
}

#[test]
fn only_what_was_asked_for_is_told() {
    for (of, interface) in [(RMI, "rmi"), (RSI, "rsi"), (RIPAS, "ripas")] {
        let scene = Scene::of(traced(of)).activated(1);
        scene.answered_by_rsi(RsiCommand::Version, &[0x1_0000]);
        let lines = all_told(scene.fake);
        assert!(
            !lines.is_empty() && lines.iter().all(|line| line.starts_with(&format!("{interface} "))),
            "{lines:?}"
        );
    }
    let scene = Scene::of(traced(Traced::NOTHING)).activated(1);
    scene.answered_by_rsi(RsiCommand::Version, &[0x1_0000]);
    assert!(all_told(scene.fake).is_empty());
}

#[test]
fn what_is_told_changes_nothing() {
    let run = |of| {
        let scene = Scene::of(traced(of)).activated(2);
        scene.rsi(RsiCommand::IpaStateSet, &[DATA, SPARE + PAGE, 0, 1]);
        let first = scene.exit();
        let set = scene.fake.call(RttSetRipas, &[scene.rd, scene.recs[0], DATA, SPARE + PAGE]);
        let answer = scene.answered_by_rsi(RsiCommand::IpaStateGet, &[DATA, SPARE + PAGE]);
        (first, set, answer, scene.vcpu(), scene.fake.fingerprint())
    };
    assert!(run(ALL) == run(Traced::NOTHING));
    TOLD.take();
}

#[test]
fn lines_of_several_cpus_are_whole() {
    static LINES: Mutex<String> = Mutex::new(String::new());
    // A word at a time, as a device takes it.
    fn tell(text: fmt::Arguments<'_>) -> fmt::Result {
        struct Slow;
        impl fmt::Write for Slow {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                LINES.lock().unwrap().push_str(text);
                std::thread::yield_now();
                Ok(())
            }
        }
        fmt::Write::write_fmt(&mut Slow, text)
    }
    let fake = Fake::traced(64 * MIB, Trace::new(RMI, tell, Box::leak(Box::new(Kept::new()))));
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let fake = &fake;
            threads.spawn(move || {
                for index in 0..200 {
                    // Not alike: each is a line.
                    fake.call(Features, &[index * 3 + thread]);
                }
            });
        }
    });
    fake.monitor.tell_kept();
    let lines = LINES.lock().unwrap();
    assert_eq!(lines.lines().count(), 800);
    assert!(lines.lines().all(|line| line.starts_with("rmi cpu0 @0 RMI_FEATURES index=0x")
        && line.contains(" -> RMI_SUCCESS value=0x")));
}
