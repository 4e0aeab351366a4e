//! A realm that has a small machine, on the [fake](crate::fake): made, shared with, taken back from, ended.

use std::fmt;
use std::sync::Mutex;

use hyp::el2::vcpu::{Exit, Vcpu};
use hyp::mapping::{Address, Change, El2, GRANULE, Pa, Range, Va};
use hyp::owner::{HostPage, Keeper, Purpose};
use rmm_abi::v1_0::psci::{PsciCommand, PsciReturnCode};
use rmm_abi::v1_0::rmi::RmiCommand;
use rmm_abi::v1_0::rsi::{RsiCommand, RsiStatus};
use rmm_abi::v1_0::{RmmHipas, RmmRipas};

use super::audit::Audit;
use super::*;
use crate::fake::{DEVICE, Fake, FakeWorld, HOST, MIB};

const KERNEL: u64 = HOST + 2 * MIB;
const KERNEL_SIZE: u64 = 2 * MIB + 0x1234;
const INITRD: u64 = HOST + 6 * MIB;
const INITRD_SIZE: u64 = 0x2001;
const TREE: u64 = HOST + 8 * MIB;
const TREE_SIZE: u64 = 0x123;
/// RAM that nothing lies in.
const FREE: u64 = HOST + 10 * MIB;
const SHARED: u64 = 1 << 31;
/// Larger than a block, beside the small one at [`DEVICE`].
const LARGE_DEVICE: u64 = 0x0a00_0000;

const SMC: u64 = 0x17 << 26 | 1 << 25;
const LOAD: u64 = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 5 << 16 | 0x07;
const EMPTY: u64 = 0;
const RAM: u64 = 1;

#[derive(Default)]
struct Desk {
    lines: Mutex<Vec<String>>,
    /// CPUs that were turned on, and what the next are answered.
    turned_on: Mutex<Vec<usize>>,
    answers: Mutex<Vec<TurnedOn>>,
    /// What happens meanwhile.
    at_wait: Mutex<Option<Box<dyn Fn() + Send>>>,
    /// Done the next time that the time is asked: between an exit and what is made of it.
    at_exit: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Board for Desk {
    fn say(&self, line: fmt::Arguments<'_>) {
        self.lines.lock().unwrap().push(line.to_string());
    }
    fn now(&self) -> (u64, u64) {
        let work = self.at_exit.lock().unwrap().take();
        work.into_iter().for_each(|work| work());
        (0, 1)
    }
    fn turn_on(&self, cpu: usize) -> TurnedOn {
        self.turned_on.lock().unwrap().push(cpu);
        self.answers.lock().unwrap().pop().unwrap_or(TurnedOn::Comes)
    }
    fn turn_off(&self) {}
    fn wait(&self) {
        if let Some(work) = &*self.at_wait.lock().unwrap() {
            work();
        }
    }
}

type Host = Policy<FakeWorld, Desk>;

struct Scene {
    fake: &'static Fake,
    policy: &'static Host,
}

fn range(start: u64, size: u64) -> Range<Pa> {
    Range::new(start, size).unwrap()
}

fn plan(fake: &Fake) -> Plan {
    let granules = range(fake.end - 4 * MIB, 4 * MIB);
    let mut cpus = [0; MAX_RECS];
    cpus[1] = 1;
    Plan {
        entry: KERNEL,
        kernel: range(KERNEL, KERNEL_SIZE),
        initrd: Some(range(INITRD, INITRD_SIZE)),
        tree: range(TREE, TREE_SIZE),
        ram: Ranges::new([range(HOST, granules.start().get() - HOST)]).unwrap(),
        devices: Ranges::new([range(DEVICE, GRANULE), range(LARGE_DEVICE, 4 * MIB)]).unwrap(),
        granules,
        cpus,
        cpu_count: 2,
    }
}

fn fake() -> &'static Fake {
    let fake: &'static Fake = Box::leak(Box::new(Fake::new()));
    // What boot loaders leave, up to the end of each last granule and elsewhere.
    for at in (HOST..HOST + 12 * MIB).step_by(8) {
        fake.store(at, &(at | 1).to_ne_bytes());
    }
    fake
}

impl Scene {
    fn of(fake: &'static Fake, plan: Plan) -> Self {
        let policy = Policy::new(&fake.monitor, Desk::default(), Box::leak(Box::new(plan)));
        let policy: &Host = Box::leak(Box::new(policy));
        let all_come = || {
            for &cpu in &*policy.board.turned_on.lock().unwrap() {
                policy.recs[cpu].is_parked.store(true, Relaxed);
            }
        };
        *policy.board.at_wait.lock().unwrap() = Some(Box::new(all_come));
        Self { fake, policy }
    }

    fn new() -> Self {
        let fake = fake();
        Self::of(fake, plan(fake))
    }

    #[track_caller]
    fn made() -> Self {
        let scene = Self::new();
        scene.policy.make().unwrap();
        scene
    }

    /// The line why none was made.
    fn refused(change: impl FnOnce(&mut Plan)) -> String {
        let fake = fake();
        let mut plan = plan(fake);
        change(&mut plan);
        Self::of(fake, plan).policy.make().unwrap_err().to_string()
    }

    fn step(&self, step: impl FnOnce(&mut Vcpu) -> Exit + Send + 'static) {
        self.fake.script(move |vcpu, _| step(vcpu));
    }

    fn smc(&self, x: &[u64]) {
        let x = x.to_vec();
        self.step(move |vcpu| {
            vcpu.x[..x.len()].copy_from_slice(&x);
            Exit::Synchronous { esr: SMC, far: 0, hpfar: 0 }
        });
    }

    fn psci(&self, command: PsciCommand, args: &[u64]) {
        self.smc(&[&[u64::from(command.fid())], args].concat());
    }

    /// The realm touches this.
    fn touch(&self, ipa: u64) {
        self.step(move |_| Exit::Synchronous { esr: LOAD, far: ipa, hpfar: ipa >> 12 << 4 });
    }

    /// The realm changes RIPAS of these pages, all of which it is granted.
    fn change(&self, base: u64, top: u64, ripas: u64) {
        const CHANGE_DESTROYED: u64 = 1;
        self.smc(&[RsiCommand::IpaStateSet.fid().into(), base, top, ripas, CHANGE_DESTROYED]);
        self.step(move |vcpu| {
            assert_eq!(vcpu.x[..3], [RsiStatus::Success.bits(), top, 0]);
            // Nothing happens.
            Exit::Synchronous { esr: 0x01 << 26, far: 0, hpfar: 0 }
        });
    }

    /// Runs REC 0 until it turns itself off.
    #[track_caller]
    fn run(&self) {
        self.psci(PsciCommand::CpuOff, &[]);
        let rec = self.policy.realm().unwrap();
        assert_eq!(self.policy.enter(0), None, "{:?}", self.policy.board.lines.lock().unwrap().last());
        assert!(self.fake.cpus().script.lock().unwrap().is_empty());
        // On again, for the next run.
        let lock = self.fake.monitor.lock();
        lock.rec(self.policy.recs[0].pa.load(Relaxed)).unwrap().runnable.set(true);
        drop(lock);
        assert_eq!(rec.shared, SHARED);
    }

    /// What a CPU that waits does that may go on.
    fn enter(&self, cpu: usize) -> Option<Over> {
        let rec = &self.policy.recs[cpu];
        assert!(rec.is_parked.swap(false, Relaxed) && rec.go.swap(false, Relaxed));
        self.policy.enter(cpu)
    }

    fn rtte(&self, ipa: u64) -> (i64, crate::rtt::Rtte) {
        self.fake.rtte(self.policy.realm().unwrap().rd, ipa, 3)
    }

    #[track_caller]
    fn is_data(&self, page: u64) {
        assert_eq!(self.fake.is(page), HostPage::Kept(Keeper::Realm(1, Purpose::Data)), "{page:#x}");
    }

    fn lines(&self, what: &str) -> Vec<String> {
        let lines = self.policy.board.lines.lock().unwrap();
        lines.iter().filter_map(|line| line.strip_prefix(what)).map(|line| line.trim().into()).collect()
    }

    fn in_use(&self) -> u64 {
        self.policy.lock().in_use()
    }
}

#[test]
fn a_realm_is_made_of_what_lies_in_memory_each_page_in_its_place() {
    let scene = Scene::made();
    for (start, size) in [(KERNEL, KERNEL_SIZE), (INITRD, INITRD_SIZE), (TREE, TREE_SIZE)] {
        for page in (start..start + size).step_by(GRANULE as usize) {
            scene.is_data(page);
            let (level, rtte) = scene.rtte(page);
            let of_entry = page & (rmm_abi::v1_0::entry_size(level).unwrap() - 1);
            assert_eq!((rtte.addr + of_entry, rtte.ripas), (page, RmmRipas::Ram));
            assert_eq!(scene.fake.bytes::<1>(page), [1]);
        }
        // Behind the file there are zeroes, though there was something else.
        let end = start + size;
        assert_eq!(scene.fake.bytes::<4>(end.next_multiple_of(8)), [0; 4]);
        assert_eq!(
            scene.fake.bytes::<1>(end - 1),
            [((end - 1) & !7 | 1).to_ne_bytes()[((end - 1) % 8) as usize]]
        );
    }
    // The kernel has one whole block.
    assert_eq!(scene.rtte(KERNEL).0, 2);
    // The rest is the host's, and wanted.
    for page in [HOST, FREE, KERNEL + 3 * MIB, TREE + GRANULE] {
        assert_eq!((scene.fake.is(page), scene.rtte(page).1.ripas), (HostPage::Owned, RmmRipas::Ram));
    }
    for page in [scene.policy.plan.granules.start().get(), DEVICE, 0] {
        assert_eq!(scene.rtte(page).1.ripas, RmmRipas::Empty, "{page:#x}");
    }
    let measured = scene.lines("@cloven measured ");
    assert_eq!(measured[0], "realm 0 32 0 1 1 0 0");
    assert_eq!(measured[1], format!("image {KERNEL:#x} {KERNEL_SIZE} 1"));
    assert_eq!(measured[2], format!("initrd {INITRD:#x} {INITRD_SIZE} 1"));
    assert!(measured[3].starts_with(&format!("data {TREE:#x} 1 0100804100000000")), "{}", measured[3]);
    assert_eq!(measured.last().unwrap(), &format!("rec 1 {KERNEL:#x} {TREE:#x} 0 0 0 0 0 0 0"));
    let ripas: u64 = measured.iter().filter_map(|line| line.strip_prefix("ripas ")).map(bytes_of).sum();
    let pages = |size: u64| size.next_multiple_of(GRANULE);
    let all = scene.policy.plan.granules.start().get() - HOST;
    assert_eq!(ripas, all - pages(KERNEL_SIZE) - pages(INITRD_SIZE) - pages(TREE_SIZE));
}

fn bytes_of(line: &str) -> u64 {
    let mut words =
        line.split(' ').map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap());
    let (base, top) = (words.next().unwrap(), words.next().unwrap());
    top - base
}

#[test]
fn memory_is_given_by_the_block_when_it_is_touched() {
    let scene = Scene::made();
    let before = scene.in_use();
    scene.touch(FREE + 0x5000);
    scene.run();
    let (level, rtte) = scene.rtte(FREE);
    assert_eq!((level, rtte.addr, rtte.is(RmmHipas::Assigned)), (2, FREE, true));
    scene.is_data(FREE);
    scene.is_data(FREE + 2 * MIB - GRANULE);
    assert_eq!(scene.fake.is(FREE + 2 * MIB), HostPage::Owned);
    assert_eq!((scene.in_use(), scene.fake.bytes::<8>(FREE)), (before, [0; 8]));
    // Around the initramfs all but that was missing.
    scene.touch(INITRD + 0x10_0000);
    scene.run();
    assert_eq!((scene.rtte(INITRD).0, scene.in_use()), (2, before - 1));
    assert_eq!(scene.fake.bytes::<8>(INITRD), (INITRD | 1).to_ne_bytes());
}

#[test]
fn what_is_shared_is_the_same_page_wiped_and_comes_back_wiped() {
    let scene = Scene::made();
    scene.touch(FREE);
    scene.run();
    let (before, page) = (scene.in_use(), FREE + 0x7000);
    scene.fake.store(page, b"secret");
    scene.change(page, page + 3 * GRANULE, EMPTY);
    scene.touch((page + GRANULE) | SHARED);
    scene.run();
    assert_eq!(scene.fake.is(page), HostPage::Owned);
    assert_eq!(scene.fake.is(page + GRANULE), HostPage::SharedWithRealm);
    let (level, rtte) = scene.rtte((page + GRANULE) | SHARED);
    assert_eq!((level, rtte.addr, rtte.is(RmmHipas::AssignedNs)), (3, page + GRANULE, true));
    assert_eq!(scene.fake.bytes::<6>(page), [0; 6]);
    scene.is_data(page - GRANULE);
    scene.is_data(page + 3 * GRANULE);
    let audit = scene.policy.look();
    assert_eq!((audit.exposed, audit.stolen, audit.shared), (0, 0, 1));

    scene.fake.store(page + GRANULE, b"shared");
    scene.change(page, page + 3 * GRANULE, RAM);
    scene.touch(page + GRANULE);
    scene.run();
    assert_eq!((scene.rtte(FREE).0, scene.fake.bytes::<6>(page + GRANULE)), (2, [0; 6]));
    (0..512).for_each(|number| scene.is_data(FREE + number * GRANULE));
    assert!(scene.rtte((page + GRANULE) | SHARED).1.is(RmmHipas::UnassignedNs));
    // The tables of the shared half above the pages stay.
    assert_eq!(scene.in_use(), before + 1);
    let counts = &scene.policy.counts;
    let given = counts.given.load(Relaxed) - counts.taken.load(Relaxed);
    assert_eq!(scene.policy.look().protected, given);
}

#[test]
fn a_whole_block_is_shared_as_one() {
    let scene = Scene::made();
    let before = scene.in_use();
    // One that was touched, and one that never was.
    scene.touch(FREE);
    scene.change(FREE, FREE + 4 * MIB, EMPTY);
    scene.touch(FREE | SHARED);
    scene.touch((FREE + 3 * MIB) | SHARED);
    scene.run();
    for block in [FREE, FREE + 2 * MIB] {
        let (level, rtte) = scene.rtte(block | SHARED);
        assert_eq!((level, rtte.addr), (2, block));
        assert_eq!(scene.rtte(block).0, 2);
    }
    assert_eq!(scene.in_use(), before + 1);
    let audit = scene.policy.look();
    assert_eq!((audit.shared, audit.stolen), (1024, 0));
    scene.change(FREE + GRANULE, FREE + 4 * MIB, RAM);
    scene.run();
    assert_eq!(scene.policy.look().shared, 1);
}

#[test]
fn devices_are_mapped_at_their_alias_and_nothing_else_is() {
    let scene = Scene::made();
    scene.touch(DEVICE | SHARED);
    scene.touch((LARGE_DEVICE + 0x3000) | SHARED);
    // Between devices, and memory that is the realm's own: it takes an abort, at its vector.
    for nothing in [DEVICE + GRANULE, FREE, scene.policy.plan.granules.start().get(), KERNEL] {
        scene.touch(nothing | SHARED);
        scene.step(move |vcpu| {
            assert_eq!((vcpu.pc, vcpu.el1.esr & 0x3f), (0x200, 0x10), "{nothing:#x}");
            Exit::Synchronous { esr: 0x01 << 26, far: 0, hpfar: 0 }
        });
    }
    scene.run();
    let (level, rtte) = scene.rtte(DEVICE | SHARED);
    assert_eq!((level, rtte.addr), (3, DEVICE));
    let (level, rtte) = scene.rtte(LARGE_DEVICE | SHARED);
    assert_eq!((level, rtte.addr), (2, LARGE_DEVICE));
    let Audit { devices, stolen, shared, .. } = scene.policy.look();
    assert_eq!((devices, stolen, shared), (1 + 512, 0, 0));
}

#[test]
fn cpus_go_on_and_off_and_a_rec_runs_once_its_cpu_is_there() {
    let scene = Scene::made();
    let policy = scene.policy;
    let on = |target: u64| scene.psci(PsciCommand::CpuOn, &[target, KERNEL + 0x40, 0x77]);
    let answer = |code: PsciReturnCode| {
        scene.step(move |vcpu| {
            assert_eq!(vcpu.x[0], code.to_register());
            Exit::Synchronous { esr: 0x01 << 26, far: 0, hpfar: 0 }
        });
    };
    // On its way off at first.
    *policy.board.answers.lock().unwrap() = vec![TurnedOn::Comes, TurnedOn::NotOffYet];
    *policy.board.at_wait.lock().unwrap() = Some(Box::new(|| {
        let turned_on = policy.board.turned_on.lock().unwrap().len();
        // The first was told that it is not off yet.
        policy.recs[1].is_parked.store(turned_on >= 2, Relaxed);
    }));
    on(1);
    answer(PsciReturnCode::Success);
    on(1);
    answer(PsciReturnCode::AlreadyOn);
    scene.psci(PsciCommand::AffinityInfo, &[1, 0]);
    answer(PsciReturnCode::Success);
    scene.run();
    assert_eq!(*policy.board.turned_on.lock().unwrap(), [1, 1]);
    assert!(policy.recs[1].go.load(Relaxed));
    scene.step(|vcpu| {
        assert_eq!((vcpu.pc, vcpu.x[0], vcpu.vmpidr & 0xff), (KERNEL + 0x40, 0x77, 1));
        Exit::Synchronous { esr: 0x01 << 26, far: 0, hpfar: 0 }
    });
    scene.psci(PsciCommand::CpuOff, &[]);
    assert_eq!(scene.enter(1), None);
    // Again; what the firmware refuses is denied.
    *policy.board.answers.lock().unwrap() = vec![TurnedOn::Comes, TurnedOn::Refused(-6)];
    scene.psci(PsciCommand::AffinityInfo, &[1, 0]);
    answer(PsciReturnCode::Off);
    on(1);
    answer(PsciReturnCode::Denied);
    on(1);
    answer(PsciReturnCode::Success);
    scene.run();
    assert_eq!(policy.board.turned_on.lock().unwrap().len(), 4);
    assert_eq!(scene.lines("policy: cpu 1 is not turned on: ").len(), 1);
    // One that could not be turned off waits here, and needs no firmware.
    policy.recs[1].is_on.store(false, Relaxed);
    policy.recs[1].is_parked.store(true, Relaxed);
    assert_eq!(policy.turn_on(1), Ok(()));
    assert_eq!(policy.board.turned_on.lock().unwrap().len(), 4);
}

#[test]
fn a_cpu_that_is_turned_on_while_it_goes_off_stays() {
    let scene = Scene::made();
    let policy = scene.policy;
    let on = || scene.psci(PsciCommand::CpuOn, &[1, KERNEL + 0x40, 0x77]);
    on();
    scene.run();
    let nothing = || scene.step(|_| Exit::Synchronous { esr: 0x01 << 26, far: 0, hpfar: 0 });
    // It was named in vain before it goes off: once it is off nobody has turned it on.
    on();
    scene.run();
    assert!(policy.recs[1].was_named.load(Relaxed));
    scene.psci(PsciCommand::CpuOff, &[]);
    assert_eq!(scene.enter(1), None);
    assert!(!policy.recs[1].is_on.load(Relaxed));
    on();
    scene.run();
    // REC 0 turns it on between its exit and what is made of that.
    let (rec, run) = (policy.recs[0].pa.load(Relaxed), policy.recs[0].run.load(Relaxed));
    *policy.board.at_exit.lock().unwrap() = Some(Box::new(move || {
        policy.call(RmiCommand::RecEnter, &[rec, run]).unwrap();
        policy.name(rec, 1, true).unwrap();
    }));
    scene.psci(PsciCommand::CpuOff, &[]);
    on();
    scene.step(|vcpu| {
        assert_eq!((vcpu.pc, vcpu.x[0], vcpu.vmpidr & 0xff), (KERNEL + 0x40, 0x77, 1));
        Exit::Synchronous { esr: 0x01 << 26, far: 0, hpfar: 0 }
    });
    nothing();
    scene.psci(PsciCommand::CpuOff, &[]);
    assert_eq!(scene.enter(1), None);
    assert!(!policy.recs[1].is_on.load(Relaxed));
    assert!(scene.fake.cpus().script.lock().unwrap().is_empty());
    assert_eq!(policy.board.turned_on.lock().unwrap().len(), 2);
}

#[test]
fn a_cpu_that_cannot_run_a_rec_is_denied() {
    let scene = Scene::made();
    let policy = scene.policy;
    scene.fake.cpus().can_run.store(false, Relaxed);
    let other = std::thread::spawn(|| policy.run(1));
    while !policy.recs[1].is_unlike.load(Relaxed) {
        std::thread::yield_now();
    }
    scene.fake.cpus().can_run.store(true, Relaxed);
    scene.psci(PsciCommand::CpuOn, &[1, KERNEL, 0]);
    scene.step(|vcpu| {
        assert_eq!(vcpu.x[0], PsciReturnCode::Denied.to_register());
        Exit::Synchronous { esr: 0x01 << 26, far: 0, hpfar: 0 }
    });
    scene.run();
    assert_eq!(scene.lines("policy: cpu 1 is not turned on: it has not what the realm").len(), 1);
    assert!(policy.claim_end());
    assert_eq!(other.join().unwrap(), Over::Elsewhere);
}

#[test]
fn a_host_call_is_not_supported() {
    let scene = Scene::made();
    scene.smc(&[RsiCommand::HostCall.fid().into(), KERNEL]);
    scene.step(|vcpu| {
        assert_eq!(vcpu.x[0], RsiStatus::Success.bits());
        Exit::Synchronous { esr: 0x01 << 26, far: 0, hpfar: 0 }
    });
    scene.run();
    // Behind the immediate.
    assert_eq!(scene.fake.bytes::<8>(KERNEL + 8), (-1i64).to_ne_bytes());
}

#[test]
fn memory_that_cannot_be_given_ends_the_run() {
    let scene = Scene::made();
    let rd = scene.policy.realm().unwrap().rd;
    // As if it had been let ask for that.
    let rec = scene.policy.recs[0].pa.load(Relaxed);
    scene.smc(&[RsiCommand::IpaStateSet.fid().into(), DEVICE, DEVICE + GRANULE, RAM, 0]);
    let run = scene.policy.recs[0].run.load(Relaxed);
    scene.policy.call(RmiCommand::RecEnter, &[rec, run]).unwrap();
    let inputs = [rd, rec, DEVICE, DEVICE + GRANULE];
    let set = RmiCommand::RttSetRipas;
    scene.policy.with_tables(&mut scene.policy.lock(), (DEVICE, PAGE), set, &inputs).unwrap();
    scene.touch(DEVICE);
    assert_eq!(scene.policy.run(0), Over::Failed);
    assert_eq!(scene.lines("policy: REC 0 cannot go on: the realm has accessed IPA 0x9000000").len(), 1);
}

#[test]
fn one_cpu_says_how_it_ends() {
    let scene = Scene::made();
    assert!(scene.policy.claim_end());
    scene.psci(PsciCommand::SystemOff, &[]);
    assert_eq!(scene.policy.enter(0), Some(Over::Elsewhere));
    assert!(scene.lines("@cloven check").is_empty());
}

#[test]
fn the_end_says_that_all_is_whole_and_what_the_rim_is() {
    let scene = Scene::made();
    scene.touch(FREE);
    scene.psci(PsciCommand::SystemOff, &[]);
    assert_eq!(scene.policy.run(0), Over::Off);
    let (kernel, others) = (KERNEL_SIZE.div_ceil(GRANULE), INITRD_SIZE.div_ceil(GRANULE) + 1);
    let check = format!("ok {} protected, 0 shared", kernel + others + 512);
    assert_eq!(scene.lines("@cloven check policy.protected_pages_are_nobody_elses"), [check]);
    let rim = scene.lines("@cloven rim");
    assert_eq!((rim.len(), rim[0].len()), (1, 64));
    let lock = scene.fake.monitor.lock();
    let realm = lock.realm(scene.policy.realm().unwrap().rd).unwrap();
    let expected: String = realm.measurements.borrow()[0][..32].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(rim[0], expected);
    drop(lock);
    // Who comes later finds that it is over.
    assert_eq!(scene.policy.run(1), Over::Elsewhere);
}

#[test]
fn a_page_that_another_party_has_is_found_at_the_end() {
    let scene = Scene::made();
    // As if it had been forgotten in EL2's map.
    let page = Range::<Va>::new(KERNEL + 0x3000, GRANULE).unwrap();
    scene.fake.el2.protect(page, Change::<El2>::VALIDATE).unwrap().flush();
    assert_eq!(scene.policy.look().exposed, 512, "all of its leaf");
    scene.psci(PsciCommand::SystemReset, &[]);
    assert_eq!(scene.policy.run(0), Over::Reset);
    let check = scene.lines("@cloven check policy.protected_pages_are_nobody_elses");
    assert!(check[0].starts_with("FAIL of "), "{check:?}");
}

#[test]
fn what_cannot_be_made_is_refused_in_a_line() {
    let refused = |change: fn(&mut Plan)| Scene::refused(change);
    assert!(
        refused(|plan| plan.kernel = range(HOST - MIB, MIB))
            .starts_with("the kernel is not in RAM: 0x40f00000")
    );
    assert!(
        refused(|plan| plan.initrd = Some(range(TREE, 8))).starts_with("two things that are measured share")
    );
    let unaligned = refused(|plan| plan.initrd = Some(range(INITRD + 8, 8)));
    assert_eq!(unaligned, format!("what is measured does not begin with a granule: {:#x}", INITRD + 8));
    assert_eq!(
        refused(|plan| plan.cpus[1] = 0x100),
        "cpu 1 has affinity 0x100, and REC 1 cannot be named so"
    );
    assert!(
        refused(|plan| plan.devices = Ranges::new([range(1 << 47, GRANULE)]).unwrap())
            .contains("49 bits of IPA")
    );
    let few = |plan: &mut Plan| plan.granules = range(plan.granules.start().get(), 6 * GRANULE);
    assert_eq!(refused(few), "there is no granule left for a table");
    let odd = |plan: &mut Plan| plan.granules = range(plan.granules.start().get(), GRANULE);
    assert_eq!(refused(odd), "there is no granule left for a table");
}

#[test]
fn a_realm_that_runs_out_of_tables_ends_with_a_line() {
    let scene = Scene::made();
    while scene.policy.lock().take().is_some() {}
    scene.touch(FREE);
    assert_eq!(scene.policy.run(0), Over::Failed);
    let lines = scene.policy.board.lines.lock().unwrap();
    assert_eq!(lines.last().unwrap(), "policy: REC 0 cannot go on: there is no granule left for a table");
}

#[test]
fn memory_that_the_machine_has_not_is_refused() {
    const REJECT: u64 = 1;
    let scene = Scene::made();
    let end = scene.policy.plan.granules.start().get();
    for (base, top, reached) in
        [(DEVICE & !0xfff, DEVICE + GRANULE, DEVICE), (end - GRANULE, end + GRANULE, end)]
    {
        scene.smc(&[RsiCommand::IpaStateSet.fid().into(), base, top, RAM, 0]);
        scene.step(move |vcpu| {
            assert_eq!(vcpu.x[..3], [RsiStatus::Success.bits(), reached, REJECT]);
            Exit::Synchronous { esr: 0x01 << 26, far: 0, hpfar: 0 }
        });
    }
    scene.run();
    for page in [DEVICE, end] {
        assert_eq!(scene.rtte(page).1.ripas, RmmRipas::Empty);
    }
}

#[test]
fn memory_that_the_realm_gives_up_and_never_touched_costs_nothing() {
    let scene = Scene::made();
    let runs = scene.policy.counts.given.load(Relaxed);
    scene.change(FREE, FREE + 8 * MIB, EMPTY);
    scene.change(FREE, FREE + 8 * MIB, RAM);
    scene.run();
    assert_eq!((scene.policy.counts.given.load(Relaxed), scene.policy.counts.taken.load(Relaxed)), (runs, 0));
    assert_eq!((scene.rtte(FREE).0, scene.fake.is(FREE)), (2, HostPage::Owned));
}
