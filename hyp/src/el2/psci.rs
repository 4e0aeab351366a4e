//! PSCI as the host sees it (DEN0022, sections cited by name): each call relayed to the firmware below, with the
//! hypervisor's entry in place of the host's.
//!
//! Invariant: a CPU enters the host only through the hypervisor. Its state goes
//! `Off -> Pending` (one CPU_ON has won it) `-> On` (it has arrived at EL2) `-> Off` (its CPU_OFF), and only the
//! winner of `Off -> Pending` writes where it begins. So that address is never written while somebody reads it. Each win has
//! a number of its own, so a winner whom the firmware refuses gives back its own win and no later one; it is also the number of the
//! ticket with which the CPU is let in ([`crate::caps::admission`]).

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, Ordering};

use smccc::Call;
use smccc::arch::SMCCC_VERSION;
use smccc::psci::{
    PSCI_AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64, PSCI_CPU_OFF, PSCI_CPU_ON_32, PSCI_CPU_ON_64,
    PSCI_CPU_SUSPEND_32, PSCI_CPU_SUSPEND_64, PSCI_FEATURES, PSCI_MIGRATE_INFO_TYPE, PSCI_SYSTEM_OFF,
    PSCI_SYSTEM_RESET, PSCI_SYSTEM_RESET2_32, PSCI_SYSTEM_RESET2_64, PSCI_VERSION,
};

/// The call is not implemented.
pub const NOT_SUPPORTED: i64 = -1;
/// The call has done what it says.
pub const SUCCESS: i64 = 0;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
/// By policy, the CPU is not let in.
pub const DENIED: i64 = -3;
/// The CPU was turned on and has not said what it is.
pub const INTERNAL_FAILURE: i64 = -6;
const INVALID_ADDRESS: i64 = -9;
/// AFFINITY_INFO's own "on pending".
const AFFINITY_ON_PENDING: i64 = 2;

/// Bit of the function identifier that says SMC64.
const SMC64: u32 = 1 << 30;
/// In the flags that PSCI_FEATURES gives for CPU_SUSPEND: `power_state` has the extended format.
const EXTENDED_FORMAT: i64 = 1 << 1;

const OFF: u32 = 0;
const PENDING: u32 = 1;
const ON: u32 = 2;
/// The bits of the state; above them is the number of wins.
const STATE: u32 = 3;
const WIN: u32 = 4;
/// In the flags that PSCI_FEATURES gives for CPU_SUSPEND: OS-initiated mode, which takes SET_SUSPEND_MODE to enter.
const OS_INITIATED: i64 = 1 << 0;

/// Where a CPU begins at EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostEntry {
    /// Its first instruction, an IPA.
    pub pc: u64,
    /// What it finds in x0.
    pub context: u64,
}

/// What a CPU is told when the firmware starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirmwareEntry {
    /// The hypervisor's entry, a physical address.
    pub pc: u64,
    /// What it finds in x0.
    pub context: u64,
}

/// What PSCI needs of the hypervisor around it.
pub trait Power {
    /// Whether the host may begin at `pc`: it is the host's own memory.
    fn may_begin_at(&self, pc: u64) -> bool;
    /// How the firmware starts CPU number `cpu`, which then begins at `entry`, or where it last did if there is none.
    fn stage(&self, cpu: usize, entry: Option<HostEntry>) -> FirmwareEntry;
    /// Turns CPU number `cpu` on by `turn_on`, which gives the firmware's answer, and lets it in under the ticket `number`: SUCCESS, the
    /// firmware's error, [`DENIED`] or [`INTERNAL_FAILURE`]; after an error the CPU turns itself off, if it comes at all.
    fn admit(&self, cpu: usize, number: u64, turn_on: impl FnOnce() -> i64) -> i64;
    /// CPU number `cpu`, which makes the call, goes off in a way that may lose its context, to come back by the entry if it `returns`, and
    /// not before it is let in anew if not.
    fn leave(&self, cpu: usize, returns: bool);
    /// Called in each turn of a loop that waits for another CPU's call to end.
    fn wait(&self);
    /// No other CPU will come: what waits for that is done.
    fn finalize(&self);
}

/// One CPU: who it is and how it is.
#[derive(Debug)]
pub struct CpuPower {
    mpidr: u64,
    state: AtomicU32,
}

impl CpuPower {
    /// The CPU of this affinity (`MPIDR_EL1`, affinity fields only), off.
    pub const fn new(mpidr: u64) -> Self {
        Self { mpidr, state: AtomicU32::new(OFF) }
    }

    /// The CPU has arrived at EL2.
    pub fn arrived(&self) {
        self.set(ON);
    }

    /// The firmware has refused to turn the CPU off: on again, unless somebody has won it meanwhile, who is about to be refused and to lose it.
    fn stays(&self) -> bool {
        let seen = self.state.load(Ordering::Acquire);
        let on = (seen & !STATE) | ON;
        seen & STATE == OFF
            && self.state.compare_exchange(seen, on, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The CPU is about to turn itself off. From here on another one may turn it on; the firmware refuses that until it
    /// is off.
    pub fn left(&self) {
        self.set(OFF);
    }

    fn set(&self, state: u32) {
        // Others may win or lose meanwhile, and their number stays.
        let new = |seen: u32| Some((seen & !STATE) | state);
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, new);
    }

    /// Takes the CPU from off to pending: the value to give back to [`CpuPower::lose`], or the state it is in.
    fn win(&self) -> Result<u32, u32> {
        let seen = self.state.load(Ordering::Acquire);
        if seen & STATE != OFF {
            return Err(seen & STATE);
        }
        // No win has number 0: that is what a mailbox has that nobody has answered in.
        let next = (seen.wrapping_add(WIN) & !STATE).max(WIN);
        let won = next | PENDING;
        let exchange = self.state.compare_exchange(seen, won, Ordering::AcqRel, Ordering::Acquire);
        exchange.map(|_| won).map_err(|now| now & STATE)
    }

    /// The firmware has refused what `won` was won for: off again, unless it was not off after all.
    fn lose(&self, won: u32) {
        let off = (won & !STATE) | OFF;
        let _ = self.state.compare_exchange(won, off, Ordering::AcqRel, Ordering::Acquire);
    }

    fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) & STATE == PENDING
    }

    /// Its affinity.
    pub fn mpidr(&self) -> u64 {
        self.mpidr
    }
}

/// The relay, over the firmware that `C` calls.
#[derive(Debug)]
pub struct Psci<'a, C> {
    cpus: &'a [CpuPower],
    suspend_is_extended: bool,
    firmware: PhantomData<C>,
}

impl<'a, C: Call> Psci<'a, C> {
    /// A relay for `cpus`.
    pub fn new(cpus: &'a [CpuPower]) -> Self {
        let flags = firmware::<C>(PSCI_FEATURES, [PSCI_CPU_SUSPEND_64.into(), 0, 0]);
        Self { cpus, suspend_is_extended: flags > 0 && flags & EXTENDED_FORMAT != 0, firmware: PhantomData }
    }

    /// Answers `function` for CPU number `me` (an index of the list given to [`Psci::new`]), or nothing if it is
    /// none of those relayed.
    pub fn call(&self, power: &impl Power, me: usize, function: u32, args: [u64; 3]) -> Option<i64> {
        self.call_unless_left(power, me, (function, args), || ())
    }

    /// The same; `leaving` is called before the firmware is asked for what the CPU, or any, may not come back from.
    pub fn call_unless_left(
        &self,
        power: &impl Power,
        me: usize,
        (function, args): (u32, [u64; 3]),
        leaving: impl FnOnce(),
    ) -> Option<i64> {
        // The 32-bit convention passes the lower halves (SMCCC, "Argument passing").
        let args = if function & SMC64 != 0 { args } else { args.map(|a| a & 0xffff_ffff) };
        Some(match function {
            PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => {
                self.cpu_on(power, args[0], HostEntry { pc: args[1], context: args[2] })
            }
            PSCI_CPU_OFF => {
                leaving();
                self.cpu_off(power, me)
            }
            PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => {
                leaving();
                self.cpu_suspend(power, me, args[0], HostEntry { pc: args[1], context: args[2] })
            }
            PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => self.affinity_info(function, args),
            PSCI_FEATURES => features::<C>(args[0] as u32),
            _ if is_relayed(function) => {
                if !matches!(function, PSCI_VERSION | PSCI_MIGRATE_INFO_TYPE) {
                    leaving();
                }
                firmware::<C>(function, args)
            }
            _ => return None,
        })
    }

    fn cpu_on(&self, power: &impl Power, mpidr: u64, entry: HostEntry) -> i64 {
        let Some(number) = self.cpus.iter().position(|cpu| cpu.mpidr == mpidr) else {
            return INVALID_PARAMETERS;
        };
        if !power.may_begin_at(entry.pc) {
            return INVALID_ADDRESS;
        }
        let won = match self.cpus[number].win() {
            Ok(won) => won,
            Err(ON) => return ALREADY_ON,
            // Pending, or lost to another caller, who makes it so.
            Err(_) => return ON_PENDING,
        };
        let stub = power.stage(number, Some(entry));
        let turn_on = || firmware::<C>(PSCI_CPU_ON_64, [mpidr, stub.pc, stub.context]);
        let result = power.admit(number, (won / WIN).into(), turn_on);
        if result != SUCCESS {
            self.cpus[number].lose(won);
        }
        result
    }

    /// Returns only if the firmware refuses.
    fn cpu_off(&self, power: &impl Power, me: usize) -> i64 {
        // Before somebody else may turn it on.
        power.leave(me, false);
        self.cpus[me].left();
        let result = firmware::<C>(PSCI_CPU_OFF, [0; 3]);
        // One who has won it writes where it begins, and its ticket, until the firmware has refused it too.
        while !self.cpus[me].stays() {
            power.wait();
        }
        power.leave(me, true);
        result
    }

    /// Returns if the state was one of standby, or none was entered; else the CPU comes back through the entry.
    fn cpu_suspend(&self, power: &impl Power, me: usize, power_state: u64, entry: HostEntry) -> i64 {
        let power_down = 1 << if self.suspend_is_extended { 30 } else { 16 };
        let loses_context = power_state & power_down != 0;
        if loses_context && !power.may_begin_at(entry.pc) {
            return INVALID_ADDRESS;
        }
        // Standby has no entry, but a firmware that thinks otherwise must not find the host's.
        let stub = power.stage(me, loses_context.then_some(entry));
        power.leave(me, true);
        firmware::<C>(PSCI_CPU_SUSPEND_64, [power_state, stub.pc, stub.context])
    }

    fn affinity_info(&self, function: u32, args: [u64; 3]) -> i64 {
        let [mpidr, level, _] = args;
        if level == 0 && self.cpus.iter().any(|cpu| cpu.mpidr == mpidr && cpu.is_pending()) {
            return AFFINITY_ON_PENDING;
        }
        firmware::<C>(function, args)
    }
}

/// Calls that go through unchanged.
fn is_relayed(function: u32) -> bool {
    matches!(
        function,
        PSCI_VERSION
            | PSCI_MIGRATE_INFO_TYPE
            | PSCI_SYSTEM_OFF
            | PSCI_SYSTEM_RESET
            | PSCI_SYSTEM_RESET2_32
            | PSCI_SYSTEM_RESET2_64
    )
}

fn features<C: Call>(function: u32) -> i64 {
    let asked = || firmware::<C>(PSCI_FEATURES, [function.into(), 0, 0]);
    match function {
        // Not every firmware says so of itself, and we are there in any case.
        SMCCC_VERSION | PSCI_FEATURES => SUCCESS,
        PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => match asked() {
            flags if flags > 0 => flags & !OS_INITIATED,
            other => other,
        },
        PSCI_CPU_ON_32 | PSCI_CPU_ON_64 | PSCI_CPU_OFF | PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => {
            asked()
        }
        _ if is_relayed(function) => asked(),
        _ => NOT_SUPPORTED,
    }
}

/// Calls the firmware; a result of the 32-bit convention is sign-extended.
fn firmware<C: Call>(function: u32, args: [u64; 3]) -> i64 {
    let mut all = [0; 17];
    all[..3].copy_from_slice(&args);
    let result = C::call64(function, all)[0];
    if function & SMC64 != 0 { result as i64 } else { i64::from(result as i32) }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        /// What the fake firmware was asked, and what it answers.
        static ASKED: RefCell<Vec<(u32, [u64; 3])>> = const { RefCell::new(Vec::new()) };
        static ANSWERS: RefCell<Vec<i64>> = const { RefCell::new(Vec::new()) };
        /// What others do while it has the next call.
        static MEANWHILE: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
    }

    struct Smc;
    impl Call for Smc {
        fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
            unreachable!("the relay uses the 64-bit convention")
        }
        fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
            ASKED.with_borrow_mut(|asked| asked.push((function, [args[0], args[1], args[2]])));
            if let Some(others) = MEANWHILE.take() {
                others();
            }
            let mut result = [0; 18];
            result[0] = ANSWERS
                .with_borrow_mut(|answers| if answers.is_empty() { 0 } else { answers.remove(0) })
                as u64;
            result
        }
    }

    /// The starts that were staged, what became of tickets, and what becomes of who comes.
    #[derive(Default)]
    struct Board(
        RefCell<Vec<(usize, Option<HostEntry>)>>,
        RefCell<Vec<String>>,
        std::cell::Cell<i64>,
        RefCell<Option<Box<dyn FnOnce()>>>,
    );
    impl Power for Board {
        fn may_begin_at(&self, pc: u64) -> bool {
            pc >= 0x1000
        }
        fn stage(&self, cpu: usize, entry: Option<HostEntry>) -> FirmwareEntry {
            self.0.borrow_mut().push((cpu, entry));
            FirmwareEntry { pc: 0xe120, context: 0xc0 + cpu as u64 }
        }
        fn admit(&self, cpu: usize, number: u64, turn_on: impl FnOnce() -> i64) -> i64 {
            let result = turn_on();
            self.1.borrow_mut().push(format!("{cpu} on {number}: {result}"));
            if result == SUCCESS { self.2.get() } else { result }
        }
        fn leave(&self, cpu: usize, returns: bool) {
            self.1.borrow_mut().push(format!("{cpu} {}", if returns { "suspended" } else { "off" }));
        }
        fn wait(&self) {
            // The winner is refused, and loses it.
            self.3.take().expect("nobody is waited for")();
        }
        fn finalize(&self) {}
    }

    fn cpus() -> [CpuPower; 3] {
        let cpus = [0, 1, 0x100].map(CpuPower::new);
        cpus[0].arrived();
        cpus
    }

    fn with(answers: &[i64], run: impl FnOnce(&Psci<'_, Smc>, &Board)) -> Vec<(u32, [u64; 3])> {
        let cpus = cpus();
        let psci = Psci::<Smc>::new(&cpus);
        ASKED.take();
        ANSWERS.set(answers.to_vec());
        run(&psci, &Board::default());
        ASKED.take()
    }

    #[test]
    fn a_cpu_starts_at_the_hypervisors_entry_with_word_of_the_hosts() {
        let asked = with(&[], |psci, board| {
            assert_eq!(psci.call(board, 0, PSCI_CPU_ON_64, [0x100, 0x4000, 7]), Some(SUCCESS));
            assert_eq!(*board.0.borrow(), [(2, Some(HostEntry { pc: 0x4000, context: 7 }))]);
        });
        assert_eq!(asked, [(PSCI_CPU_ON_64, [0x100, 0xe120, 0xc2])]);
    }

    #[test]
    fn a_cpu_is_won_once_until_it_is_off_again() {
        with(&[0, 0, -3], |psci, board| {
            let on = || psci.call(board, 0, PSCI_CPU_ON_64, [1, 0x4000, 0]);
            assert_eq!((on(), on()), (Some(SUCCESS), Some(ON_PENDING)));
            let info = psci.call(board, 0, PSCI_AFFINITY_INFO_64, [1, 0, 0]);
            assert_eq!(info, Some(AFFINITY_ON_PENDING));
            psci.cpus[1].arrived();
            assert_eq!(on(), Some(ALREADY_ON));
            psci.cpus[1].left();
            assert_eq!(on(), Some(SUCCESS));
            assert_eq!(board.0.borrow().len(), 2);
        });
    }

    #[test]
    fn a_start_that_the_firmware_refuses_can_be_tried_again() {
        with(&[-6, 0], |psci, board| {
            let on = || psci.call(board, 0, PSCI_CPU_ON_64, [1, 0x4000, 0]);
            assert_eq!((on(), on()), (Some(-6), Some(SUCCESS)));
        });
    }

    #[test]
    fn a_cpu_that_is_not_let_in_is_off_and_the_next_start_has_another_ticket() {
        with(&[], |psci, board| {
            let on = || psci.call(board, 0, PSCI_CPU_ON_64, [1, 0x4000, 0]);
            for refusal in [DENIED, INTERNAL_FAILURE] {
                board.2.set(refusal);
                assert_eq!(on(), Some(refusal));
            }
            board.2.set(SUCCESS);
            assert_eq!((on(), on()), (Some(SUCCESS), Some(ON_PENDING)));
            assert_eq!(*board.1.borrow(), ["1 on 1: 0", "1 on 2: 0", "1 on 3: 0"]);
        });
    }

    #[test]
    fn who_goes_off_is_let_in_anew_and_who_suspends_is_not() {
        with(&[-3, 0, 0], |psci, board| {
            psci.cpus[1].arrived();
            psci.call(board, 1, PSCI_CPU_OFF, [0; 3]);
            psci.call(board, 1, PSCI_CPU_SUSPEND_64, [1 << 16, 0x4000, 9]);
            // Refused its CPU_OFF it is as one that was let in.
            assert_eq!(*board.1.borrow(), ["1 off", "1 suspended", "1 suspended"]);
        });
    }

    #[test]
    fn who_is_refused_its_cpu_off_waits_for_who_has_won_it_meanwhile() {
        static CPUS: [CpuPower; 1] = [CpuPower::new(1)];
        let psci = Psci::<Smc>::new(&CPUS);
        CPUS[0].arrived();
        let board = std::rc::Rc::new(Board::default());
        // While the firmware has the CPU_OFF, another CPU wins it; that one is refused while this one waits.
        let of_winner = board.clone();
        let wins = move || {
            let won = CPUS[0].win().unwrap();
            of_winner.3.replace(Some(Box::new(move || CPUS[0].lose(won))));
        };
        MEANWHILE.set(Some(Box::new(wins)));
        ANSWERS.set(vec![-3]);
        assert_eq!(psci.call(&*board, 0, PSCI_CPU_OFF, [0; 3]), Some(-3));
        assert!(board.3.take().is_none(), "nobody was waited for");
        assert_eq!(CPUS[0].win(), Err(ON));
    }

    #[test]
    fn no_win_has_number_0() {
        let cpu = CpuPower::new(1);
        cpu.state.store(!STATE | OFF, Ordering::Release);
        let won = cpu.win().unwrap();
        assert_eq!((won / WIN, won & STATE), (1, PENDING));
    }

    #[test]
    fn a_refused_cpu_off_leaves_the_cpu_on() {
        with(&[-3], |psci, board| {
            psci.cpus[1].arrived();
            assert_eq!(psci.call(board, 1, PSCI_CPU_OFF, [0; 3]), Some(-3));
            assert_eq!(psci.call(board, 0, PSCI_CPU_ON_64, [1, 0x4000, 0]), Some(ALREADY_ON));
        });
    }

    #[test]
    fn a_refused_start_does_not_undo_a_later_one() {
        let cpu = CpuPower::new(1);
        let first = cpu.win().unwrap();
        // On its way off after all, refused, and off again: then somebody else wins.
        cpu.arrived();
        cpu.left();
        let second = cpu.win().unwrap();
        cpu.lose(first);
        assert!(cpu.is_pending());
        cpu.lose(second);
        assert_eq!(cpu.win().map(|won| won & STATE), Ok(PENDING));
    }

    #[test]
    fn os_initiated_suspend_is_not_offered() {
        with(&[OS_INITIATED | EXTENDED_FORMAT, -1], |psci, board| {
            let features = || psci.call(board, 0, PSCI_FEATURES, [PSCI_CPU_SUSPEND_64.into(), 0, 0]);
            assert_eq!((features(), features()), (Some(EXTENDED_FORMAT), Some(-1)));
        });
    }

    #[test]
    fn who_leaves_is_told_before_the_firmware_is_asked() {
        let told = |function| {
            let told = std::cell::Cell::new(false);
            with(&[-3, -3], |psci, board| {
                psci.cpus[1].arrived();
                psci.call_unless_left(board, 1, (function, [0; 3]), || {
                    assert!(ASKED.with_borrow(Vec::is_empty));
                    told.set(true);
                });
            });
            told.get()
        };
        assert!(
            [PSCI_CPU_OFF, PSCI_CPU_SUSPEND_64, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET2_32].into_iter().all(told)
        );
        assert!(![PSCI_VERSION, PSCI_FEATURES, PSCI_CPU_ON_64, 0x8400_0050].into_iter().any(told));
    }

    #[test]
    fn bad_targets_and_addresses_do_not_reach_the_firmware() {
        let asked = with(&[], |psci, board| {
            let on = |mpidr, pc| psci.call(board, 0, PSCI_CPU_ON_64, [mpidr, pc, 0]);
            assert_eq!(on(9, 0x4000), Some(INVALID_PARAMETERS));
            assert_eq!(on(1 << 63, 0x4000), Some(INVALID_PARAMETERS));
            assert_eq!(on(1, 0x10), Some(INVALID_ADDRESS));
            let suspend = psci.call(board, 0, PSCI_CPU_SUSPEND_64, [1 << 16, 0x10, 0]);
            assert_eq!(suspend, Some(INVALID_ADDRESS));
        });
        assert_eq!(asked, []);
    }

    #[test]
    fn standby_keeps_the_cpu_and_power_down_brings_it_back_through_the_entry() {
        let asked = with(&[], |psci, board| {
            assert_eq!(psci.call(board, 1, PSCI_CPU_SUSPEND_32, [5, 0x4000, 9]), Some(SUCCESS));
            assert_eq!(board.0.take(), [(1, None)]);
            assert_eq!(psci.call(board, 1, PSCI_CPU_SUSPEND_64, [1 << 16, 0x4000, 9]), Some(SUCCESS));
            assert_eq!(*board.0.borrow(), [(1, Some(HostEntry { pc: 0x4000, context: 9 }))]);
        });
        let expected =
            [(PSCI_CPU_SUSPEND_64, [5, 0xe120, 0xc1]), (PSCI_CPU_SUSPEND_64, [1 << 16, 0xe120, 0xc1])];
        assert_eq!(asked, expected);
    }

    #[test]
    fn the_extended_power_state_has_its_own_bit() {
        ANSWERS.set(vec![EXTENDED_FORMAT]);
        let cpus = cpus();
        let psci = Psci::<Smc>::new(&cpus);
        let board = Board::default();
        psci.call(&board, 0, PSCI_CPU_SUSPEND_64, [1 << 16, 0x4000, 0]);
        assert_eq!(board.0.take(), [(0, None)]);
        psci.call(&board, 0, PSCI_CPU_SUSPEND_64, [1 << 30, 0x4000, 0]);
        assert_eq!(board.0.take(), [(0, Some(HostEntry { pc: 0x4000, context: 0 }))]);
    }

    #[test]
    fn the_32_bit_convention_passes_lower_halves_and_sign_extends() {
        let asked = with(&[0xffff_fffd], |psci, board| {
            let result = psci.call(board, 0, PSCI_SYSTEM_RESET2_32, [0xf_0000_0001, 2, 3]);
            assert_eq!(result, Some(-3));
        });
        assert_eq!(asked, [(PSCI_SYSTEM_RESET2_32, [1, 2, 3])]);
    }

    #[test]
    fn features_are_the_firmwares_of_what_is_relayed_only() {
        let asked = with(&[0], |psci, board| {
            let features = |f: u32| psci.call(board, 0, PSCI_FEATURES, [f.into(), 0, 0]);
            assert_eq!(features(SMCCC_VERSION), Some(SUCCESS));
            assert_eq!(features(smccc::psci::PSCI_SYSTEM_SUSPEND_64), Some(NOT_SUPPORTED));
            assert_eq!(features(PSCI_SYSTEM_OFF), Some(SUCCESS));
        });
        assert_eq!(asked, [(PSCI_FEATURES, [PSCI_SYSTEM_OFF.into(), 0, 0])]);
    }

    #[test]
    fn what_is_not_relayed_is_left_to_others() {
        let asked = with(&[], |psci, board| {
            assert_eq!(psci.call(board, 0, smccc::psci::PSCI_MEM_PROTECT, [0; 3]), None);
            assert_eq!(psci.call(board, 0, 0x8400_0050, [0; 3]), None);
        });
        assert_eq!(asked, []);
    }
}
