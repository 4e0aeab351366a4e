//! The machine against sequences written by hand: those that the architecture allows, and those that it does not.

use hyp::mapping::mmu::Reach;
use hyp::mapping::{Barrier, Scope, Tlbi};
use hyp_model::cache::Maintenance;
use hyp_model::decode::{Layout, Regime};
use hyp_model::expect::{Effect, Value};
use hyp_model::machine::{Call, Can, Config, Machine};
use hyp_model::verdict::Kind;

const PAGE: u64 = 4096;
const OUT: u64 = 1 << 30;
/// A leaf of each regime, without its type: Normal memory, inner shareable, AF; at stage 1 of EL1&0 non-global.
const EL2: u64 = 1 << 54 | 0x744;
const EL1: u64 = 3 << 53 | 0xf44;
const S2: u64 = 0x7fc;
const RO: u64 = 1 << 7;
const CHANGING: u64 = 0b0110;

const LEAVES: Reach = Reach { last_level: true, one_asid: false };
const TABLES: Reach = Reach { last_level: false, one_asid: false };

/// Tables of 4, three levels; a table below the root, and below that one more; nothing is mapped.
struct Hand {
    machine: Machine,
    root: u64,
    middle: u64,
    last: u64,
    leaf: u64,
}

impl Hand {
    fn new(regime: Regime, bbm: u8, change: impl FnOnce(&mut Config)) -> Self {
        let layout = Layout { index_bits: 2, run_bits: 1, start_level: 1, input_bits: 18, upper_half: false };
        let mut config = Config {
            regime,
            layout,
            cpus: 2,
            tables: 6,
            can: [Can::of(bbm); 4],
            hardware: false,
            mark: None,
            asids: [5; 4],
            quiesce: true,
            off: 0,
            down: 0,
            gate: false,
        };
        change(&mut config);
        let mut machine = Machine::new(config);
        let [root, middle, last] = [(); 3].map(|()| machine.memory.take_root(1).unwrap());
        for table in [root, middle, last] {
            machine.execute(0, Call::Fill { table, from: 0, to: 4, raw: 0, step: 0 });
        }
        let leaf = match regime {
            Regime::El2 => EL2,
            Regime::El1And0 => EL1,
            Regime::Stage2 => S2,
        };
        let mut hand = Self { machine, root, middle, last, leaf };
        hand.store(root, 0, middle | 3);
        hand.store(middle, 1, last | 3);
        hand.barrier(Barrier::StoresVisible);
        hand.barrier(Barrier::Synchronize);
        (0..2).for_each(|cpu| hand.machine.turn_on(cpu, root));
        hand
    }
    fn store(&mut self, table: u64, index: usize, raw: u64) {
        self.machine.execute(0, Call::Load { table, index });
        self.machine.execute(0, Call::Store { table, index, raw, release: true });
    }
    fn barrier(&mut self, barrier: Barrier) {
        self.machine.execute(0, Call::Barrier { barrier, scope: Scope::Broadcast });
    }
    fn tlbi(&mut self, operation: Tlbi, operand: u64) {
        self.machine.execute(0, Call::Tlbi { operation, scope: Scope::Broadcast, operand });
    }
    /// TLBI, with all the barriers around it.
    fn invalidate(&mut self, operation: Tlbi, operand: u64) {
        self.barrier(Barrier::StoresVisible);
        self.tlbi(operation, operand);
        self.barrier(Barrier::Complete);
        self.barrier(Barrier::Synchronize);
    }
    /// All of a block of four pages is to be this, from now on or after `body`.
    fn becomes(&mut self, first: u64, value: Option<u64>, body: impl FnOnce(&mut Self)) {
        let value = value.map_or(Value::None, |bits| Value::Leaf { shift: OUT, bits, valid: true });
        let begun = self.machine.begin((first * PAGE, (first + 4) * PAGE), Effect::Set(value));
        body(self);
        self.machine.end(0, begun, true);
    }
    /// Pages 0 to 3 as a block.
    fn block(&mut self) {
        let (middle, leaf) = (self.middle, self.leaf);
        self.becomes(0, Some(leaf), |hand| {
            hand.store(middle, 0, OUT | leaf | 1);
            hand.barrier(Barrier::StoresVisible);
            hand.barrier(Barrier::Synchronize);
        });
        assert_eq!(self.verdict(), None);
    }
    /// Pages 4 to 7 as pages, in runs or not.
    fn pages(&mut self, contiguous: bool) {
        let (last, leaf) = (self.last, self.leaf | u64::from(contiguous) << 52);
        self.becomes(4, Some(leaf), |hand| {
            (0..4).for_each(|i| hand.store(last, i, (OUT + (4 + i as u64) * PAGE) | leaf | 3));
            hand.barrier(Barrier::StoresVisible);
            hand.barrier(Barrier::Synchronize);
        });
        assert_eq!(self.verdict(), None);
    }
    /// The block becomes a table of the same, by one store.
    fn split(&mut self) {
        let (middle, leaf) = (self.middle, self.leaf);
        let table = self.machine.memory.take_root(1).unwrap();
        self.machine.execute(0, Call::Fill { table, from: 0, to: 4, raw: OUT | leaf | 3, step: PAGE });
        self.store(middle, 0, table | 3);
    }
    fn verdict(&self) -> Option<Kind> {
        self.machine.verdict().map(|verdict| verdict.kind)
    }
}

#[test]
fn a_break_before_make_sequence_is_right_at_level_0() {
    let mut hand = Hand::new(Regime::Stage2, 0, |_| {});
    hand.block();
    let middle = hand.middle;
    hand.store(middle, 0, CHANGING);
    hand.invalidate(Tlbi::Address(LEAVES), 0);
    hand.invalidate(Tlbi::Combined, 0);
    hand.split();
    hand.barrier(Barrier::StoresVisible);
    assert_eq!(hand.verdict(), None);
}

#[test]
fn a_size_changes_in_place_at_the_levels_that_allow_it() {
    for (regime, bbm, kind) in [
        (Regime::El2, 3, None),
        (Regime::El2, 2, Some(Kind::SizeConflict)),
        (Regime::Stage2, 2, None),
        (Regime::Stage2, 1, Some(Kind::SizeConflict)),
        (Regime::Stage2, 0, Some(Kind::SizeConflict)),
    ] {
        let mut hand = Hand::new(regime, bbm, |_| {});
        hand.block();
        hand.split();
        assert_eq!(hand.verdict(), kind, "{regime:?} at level {bbm}");
    }
}

#[test]
fn the_contiguous_bit_changes_in_place_at_the_levels_that_allow_it() {
    for (regime, bbm, kind) in [
        (Regime::El2, 3, None),
        (Regime::El2, 1, Some(Kind::ContiguousConflict)),
        (Regime::Stage2, 1, None),
        (Regime::Stage2, 0, Some(Kind::ContiguousConflict)),
    ] {
        let mut hand = Hand::new(regime, bbm, |_| {});
        hand.pages(true);
        let (last, leaf) = (hand.last, hand.leaf);
        hand.store(last, 0, (OUT + 4 * PAGE) | leaf | 3);
        assert_eq!(hand.verdict(), kind, "{regime:?} at level {bbm}");
    }
}

#[test]
fn a_new_output_without_a_break_is_two_translations() {
    let mut hand = Hand::new(Regime::El2, 3, |_| {});
    hand.block();
    let (middle, leaf) = (hand.middle, hand.leaf);
    let there = Value::Leaf { shift: 2 * OUT, bits: leaf, valid: true };
    let _ = hand.machine.begin((0, 4 * PAGE), Effect::Set(there));
    hand.store(middle, 0, (2 * OUT) | leaf | 1);
    assert_eq!(hand.verdict(), Some(Kind::TwoTranslations));
}

#[test]
fn an_operation_reaches_what_it_names_and_no_more() {
    let page = |page: u64, more: u64| page | more;
    let hint = |level: u64| (0b0100 | level) << 44;
    let asid = 5 << 48;
    // What makes pages 4 to 7 read-only is invalidated so; whether that does.
    let one = Reach { one_asid: true, ..LEAVES };
    let range = |pages: u64, level: u64| 0b01 << 46 | (pages / 2 - 1) << 39 | level << 37 | 4;
    type Tried<'a> = (Regime, &'a [(Tlbi, u64)], bool);
    let operations: [Tried<'_>; 12] = [
        (Regime::El2, &[(Tlbi::All, 0)], true),
        (Regime::El2, &[(Tlbi::Range(LEAVES), range(4, 0))], true),
        (Regime::El2, &[(Tlbi::Range(LEAVES), range(4, 3))], true),
        (Regime::El2, &[(Tlbi::Range(LEAVES), range(4, 2))], false),
        (Regime::El2, &[(Tlbi::Range(LEAVES), range(2, 0))], false),
        (Regime::El2, &[(Tlbi::Address(LEAVES), page(4, 0))], false),
        (Regime::El2, &[4, 5, 6, 7].map(|p| (Tlbi::Address(LEAVES), page(p, hint(3)))), true),
        (Regime::El2, &[4, 5, 6, 7].map(|p| (Tlbi::Address(LEAVES), page(p, hint(2)))), false),
        (Regime::El1And0, &[4, 5, 6, 7].map(|p| (Tlbi::Address(one), page(p, asid))), true),
        (Regime::El1And0, &[4, 5, 6, 7].map(|p| (Tlbi::Address(one), page(p, 6 << 48))), false),
        (Regime::El1And0, &[(Tlbi::Asid, asid)], true),
        (Regime::Stage2, &[(Tlbi::Range(LEAVES), range(4, 3))], false),
    ];
    for contiguous in [false, true] {
        for (regime, operations, does) in operations {
            let mut hand = Hand::new(regime, 3, |_| {});
            hand.pages(contiguous);
            let (last, leaf) = (hand.last, hand.leaf ^ RO | u64::from(contiguous) << 52);
            hand.becomes(4, Some(leaf), |hand| {
                (0..4).for_each(|i| hand.store(last, i, (OUT + (4 + i as u64) * PAGE) | leaf | 3));
                hand.barrier(Barrier::StoresVisible);
                operations.iter().for_each(|&(operation, operand)| hand.tlbi(operation, operand));
                hand.barrier(Barrier::Complete);
                hand.barrier(Barrier::Synchronize);
            });
            let kind = (!does).then_some(Kind::Stale);
            assert_eq!(hand.verdict(), kind, "{regime:?} {operations:x?}, contiguous: {contiguous}");
        }
    }
}

#[test]
fn a_walk_cache_goes_with_what_is_not_a_last_level_form() {
    for (reach, kind) in [(TABLES, None), (LEAVES, Some(Kind::ReusedWhileHeld))] {
        let mut hand = Hand::new(Regime::El2, 0, |_| {});
        hand.pages(false);
        let (middle, last) = (hand.middle, hand.last);
        let begun = hand.machine.begin((4 * PAGE, 8 * PAGE), Effect::Set(Value::None));
        hand.store(middle, 1, 0);
        hand.barrier(Barrier::StoresVisible);
        (4..8).for_each(|page| hand.tlbi(Tlbi::Address(reach), page));
        hand.barrier(Barrier::Complete);
        hand.barrier(Barrier::Synchronize);
        hand.machine.execute(0, Call::Give { table: last });
        assert_eq!(hand.verdict(), kind, "{reach:?}");
        hand.machine.end(0, begun, true);
    }
}

#[test]
fn an_invalidation_before_the_store_is_visible_may_be_undone_by_a_walk() {
    let mut hand = Hand::new(Regime::El2, 3, |_| {});
    hand.block();
    let middle = hand.middle;
    hand.becomes(0, None, |hand| {
        hand.store(middle, 0, 0);
        // One DSB for both, after the TLBI.
        hand.tlbi(Tlbi::Address(LEAVES), 0);
        hand.barrier(Barrier::Complete);
        hand.barrier(Barrier::Synchronize);
    });
    assert_eq!(hand.verdict(), Some(Kind::Stale));
}

#[test]
fn what_combines_the_stages_is_combined_again_from_what_is_left_of_stage_2() {
    // IPAS2E1 and VMALLE1, with and without a DSB between.
    for (between, kind) in [(true, None), (false, Some(Kind::Stale))] {
        let mut hand = Hand::new(Regime::Stage2, 0, |_| {});
        hand.block();
        let middle = hand.middle;
        hand.becomes(0, None, |hand| {
            hand.store(middle, 0, 0);
            hand.barrier(Barrier::StoresVisible);
            hand.tlbi(Tlbi::Address(LEAVES), 0);
            if between {
                hand.barrier(Barrier::Complete);
            }
            hand.tlbi(Tlbi::Combined, 0);
            hand.barrier(Barrier::Complete);
        });
        assert_eq!(hand.verdict(), kind, "DSB between: {between}");
    }
}

#[test]
fn of_two_entries_for_an_address_only_all_is_sure_to_remove_both() {
    for (bbm, all, kind) in [(2, true, None), (2, false, Some(Kind::Stale)), (3, false, None)] {
        let mut hand = Hand::new(Regime::Stage2, bbm, |_| {});
        hand.block();
        // Split in place, and unmapped before anything was invalidated.
        hand.split();
        let middle = hand.middle;
        hand.becomes(0, None, |hand| {
            hand.store(middle, 0, 0);
            if all {
                hand.invalidate(Tlbi::All, 0);
            } else {
                hand.barrier(Barrier::StoresVisible);
                (0..4).for_each(|page| hand.tlbi(Tlbi::Address(TABLES), page));
                hand.barrier(Barrier::Complete);
                hand.invalidate(Tlbi::Combined, 0);
            }
        });
        assert_eq!(hand.verdict(), kind, "level {bbm}, all: {all}");
    }
}

#[test]
fn where_an_invalidation_must_be_repeated_the_second_after_a_dsb_counts() {
    for (times, dsb, kind) in [(1, true, Some(Kind::Stale)), (2, false, Some(Kind::Stale)), (2, true, None)] {
        let mut hand = Hand::new(Regime::El2, 3, |config| config.each(|can| can.once = false));
        hand.block();
        let middle = hand.middle;
        hand.becomes(0, None, |hand| {
            hand.store(middle, 0, 0);
            hand.barrier(Barrier::StoresVisible);
            for _ in 0..times {
                hand.tlbi(Tlbi::Address(LEAVES), 0);
                if dsb {
                    hand.barrier(Barrier::Complete);
                }
            }
            hand.barrier(Barrier::Complete);
            hand.barrier(Barrier::Synchronize);
        });
        assert_eq!(hand.verdict(), kind, "{times} times, DSB between: {dsb}");
    }
}

#[test]
fn a_cpu_with_its_mmu_off_holds_nothing_and_has_no_exclusives() {
    let mut hand = Hand::new(Regime::El2, 3, |_| {});
    hand.machine.turn_off(0);
    hand.block();
    assert!(hand.machine.may_hold(0).leaves.is_empty() && !hand.machine.may_hold(1).leaves.is_empty());
    let (table, new) = (hand.middle, hand.last | 3);
    hand.machine.execute(1, Call::CompareExchange { table, index: 2, old: 0, new: 0 });
    assert_eq!(hand.verdict(), None);
    hand.machine.execute(0, Call::CompareExchange { table, index: 2, old: 0, new });
    assert_eq!(hand.verdict(), Some(Kind::ExclusiveWithMmuOff));
}

fn of_levels(bbm: [u8; 2]) -> impl FnOnce(&mut Config) {
    move |config| (0..2).for_each(|cpu| config.can[cpu] = Can::of(bbm[cpu]))
}

#[test]
fn what_a_cpu_may_hold_is_judged_by_its_own_level() {
    for (bbm, off, kind) in [
        ([3, 3], None, None),
        ([3, 0], None, Some(Kind::SizeConflict)),
        ([0, 3], None, Some(Kind::SizeConflict)),
        // Whose MMU is off holds nothing.
        ([3, 0], Some(1), None),
        ([0, 3], Some(0), None),
    ] {
        let mut hand = Hand::new(Regime::El2, 3, of_levels(bbm));
        off.into_iter().for_each(|cpu| hand.machine.turn_off(cpu));
        hand.block();
        hand.split();
        assert_eq!(hand.verdict(), kind, "{bbm:?}, off: {off:?}");
    }
    for (bbm, kind) in [([1, 1], None), ([1, 0], Some(Kind::ContiguousConflict))] {
        let mut hand = Hand::new(Regime::Stage2, 3, of_levels(bbm));
        hand.pages(true);
        let (last, leaf) = (hand.last, hand.leaf);
        hand.store(last, 0, (OUT + 4 * PAGE) | leaf | 3);
        assert_eq!(hand.verdict(), kind, "{bbm:?}");
    }
}

#[test]
fn an_address_form_is_sure_to_remove_two_entries_on_cpus_without_conflicts_only() {
    for (bbm, kind) in [([3, 3], None), ([3, 2], Some(Kind::Stale)), ([2, 3], Some(Kind::Stale))] {
        let mut hand = Hand::new(Regime::Stage2, 3, of_levels(bbm));
        hand.block();
        hand.split();
        let middle = hand.middle;
        hand.becomes(0, None, |hand| {
            hand.store(middle, 0, 0);
            hand.barrier(Barrier::StoresVisible);
            (0..4).for_each(|page| hand.tlbi(Tlbi::Address(TABLES), page));
            hand.barrier(Barrier::Complete);
            hand.invalidate(Tlbi::Combined, 0);
        });
        assert_eq!(hand.verdict(), kind, "{bbm:?}");
    }
}

/// Takes pages 4 to 7 away by these operations of CPU 0.
fn taken_away(operations: &[(Tlbi, u64)], times: usize, change: impl FnOnce(&mut Config)) -> Option<Kind> {
    let mut hand = Hand::new(Regime::El2, 3, change);
    hand.pages(false);
    let last = hand.last;
    hand.becomes(4, None, |hand| {
        (0..4).for_each(|index| hand.store(last, index, 0));
        hand.barrier(Barrier::StoresVisible);
        for _ in 0..times {
            operations.iter().for_each(|&(operation, operand)| hand.tlbi(operation, operand));
            hand.barrier(Barrier::Complete);
        }
        hand.barrier(Barrier::Synchronize);
    });
    hand.verdict()
}

#[test]
fn an_operation_reaches_each_cpu_as_that_cpu_knows_it() {
    let range = [(Tlbi::Range(LEAVES), 0b01 << 46 | 1 << 39 | 4)];
    assert_eq!(taken_away(&range, 1, |_| {}), None);
    assert_eq!(taken_away(&range, 1, |config| config.can[1].range = false), Some(Kind::Stale));
    assert_eq!(taken_away(&range, 1, |config| config.can[0].range = false), Some(Kind::Undefined));
    // The wrong level is a hint as long as one of them knows hints.
    let wrong = [4, 5, 6, 7].map(|page| (Tlbi::Address(LEAVES), 0b0110 << 44 | page));
    assert_eq!(taken_away(&wrong, 1, |config| config.can[1].ttl = false), Some(Kind::Stale));
    assert_eq!(taken_away(&wrong, 1, |config| config.each(|can| can.ttl = false)), None);
    for (times, kind) in [(1, Some(Kind::Stale)), (2, None)] {
        for cpu in 0..2 {
            let found = taken_away(&[(Tlbi::All, 0)], times, |config| config.can[cpu].once = false);
            assert_eq!(found, kind, "{times} times, because of CPU {cpu}");
        }
    }
}

#[test]
fn a_cpu_that_has_lost_its_context_invalidates_before_its_mmu_is_on() {
    let local = |barrier| Call::Barrier { barrier, scope: Scope::Local };
    let tlbi = |scope| Call::Tlbi { operation: Tlbi::All, scope, operand: 0 };
    let (dsb, isb) = (local(Barrier::Complete), local(Barrier::Synchronize));
    let (all, theirs) = (tlbi(Scope::Local), vec![tlbi(Scope::Broadcast), dsb]);
    // What CPU 0 does before CPU 1 has power, and with that; what CPU 1 does.
    for (before, with, own, kind) in [
        (vec![], vec![], vec![all, dsb, isb], None),
        (vec![], vec![], vec![], Some(Kind::Stale)),
        (vec![], vec![], vec![all, isb], Some(Kind::Stale)),
        (vec![], vec![], vec![all, dsb], Some(Kind::NotSynchronized)),
        // Somebody else's reaches it for certain only when its MMU is on.
        (theirs.clone(), vec![], vec![isb], Some(Kind::Stale)),
        (vec![], theirs, vec![isb], Some(Kind::Stale)),
    ] {
        let mut hand = Hand::new(Regime::El2, 3, |_| {});
        hand.block();
        let root = hand.root;
        let run = |hand: &mut Hand, cpu, calls: &[Call]| {
            calls.iter().for_each(|&call| {
                hand.machine.execute(cpu, call);
            });
        };
        run(&mut hand, 1, &[Call::PowerOff]);
        assert!(hand.machine.may_hold(1).leaves.is_empty() && !hand.machine.is_powered(1));
        run(&mut hand, 0, &before);
        run(&mut hand, 0, &[Call::PowerOn { cpu: 1 }]);
        run(&mut hand, 0, &with);
        run(&mut hand, 1, &own);
        run(&mut hand, 1, &[Call::TurnOn { root }]);
        assert_eq!(hand.verdict(), kind, "{before:?}, {with:?}, {own:?}");
        assert_eq!(!hand.machine.may_hold(1).leaves.is_empty(), kind.is_none());
    }
}

#[test]
fn an_mmu_that_was_off_and_on_again_has_the_tlb_that_it_had() {
    let mut hand = Hand::new(Regime::El2, 3, |_| {});
    hand.block();
    let (root, held) = (hand.root, hand.machine.may_hold(1).clone());
    hand.machine.execute(1, Call::TurnOff);
    hand.machine.execute(1, Call::TurnOn { root });
    assert_eq!((hand.verdict(), hand.machine.may_hold(1)), (None, &held));
}

#[test]
fn lines_are_read_and_written_as_the_mmu_of_the_cpu_is() {
    let mut hand = Hand::new(Regime::El2, 3, |_| {});
    hand.machine.execute(1, Call::TurnOff);
    let write = |value| Call::WriteLine { line: 1, first: 0, count: 1, values: [value; 8] };
    hand.machine.execute(0, write(7));
    hand.machine.execute(0, Call::Maintain { line: 1, maintenance: Maintenance::Clean });
    hand.machine.execute(0, Call::BarrierSystem);
    assert_eq!(hand.machine.execute(1, Call::ReadLine { line: 1, word: 0 }), 7);
    hand.machine.execute(0, write(8));
    let mut late = hand.machine.clone();
    hand.machine.execute(1, Call::ReadLine { line: 1, word: 0 });
    assert_eq!(hand.verdict(), Some(Kind::StaleMemory));
    late.execute(1, Call::SwapLine { line: 1, word: 0, value: 9 });
    assert_eq!(late.verdict().map(|verdict| verdict.kind), Some(Kind::ExclusiveWithMmuOff));
}

#[test]
fn who_goes_on_while_another_breaks_is_convicted() {
    for (roams, stands, goes_on, kind) in [
        (false, false, false, None),
        (true, true, false, None),
        (true, false, false, Some(Kind::TransientFault)),
        (true, true, true, Some(Kind::TransientFault)),
    ] {
        let mut hand = Hand::new(Regime::El2, 0, |config| config.gate = true);
        hand.machine.roams(1, roams);
        hand.machine.stands(1, stands);
        hand.machine.hold(0, 0, 4 * PAGE);
        if goes_on {
            hand.machine.stands(1, false);
        }
        assert_eq!(hand.verdict(), kind, "{roams}, {stands}, {goes_on}");
        hand.machine.release();
        hand.machine.stands(1, false);
        assert_eq!(hand.verdict(), kind);
    }
}
