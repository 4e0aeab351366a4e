//! A map as a list of ranges: what the tables must mean. The fuzz target has this file too.

use std::collections::BTreeMap;

use super::*;

const CONTIGUOUS: u64 = 1 << 52;

/// What is known of a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known {
    /// Output minus input (wrapping), attribute bits, whether it translates.
    Leaf(u64, u64, bool),
    State(u64),
}

/// First address of each range: the address after it, what is known of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flat(pub BTreeMap<u64, (u64, Known)>);

impl Flat {
    fn cut(&mut self, at: u64) {
        if let Some((&start, &(end, known))) = self.0.range(..at).next_back()
            && end > at
        {
            self.0.insert(start, (at, known));
            self.0.insert(at, (end, known));
        }
    }
    pub fn set(&mut self, start: u64, end: u64, known: Option<Known>) {
        if start == end {
            return;
        }
        self.cut(start);
        self.cut(end);
        let inside: Vec<u64> = self.0.range(start..end).map(|(&s, _)| s).collect();
        inside.iter().for_each(|s| {
            self.0.remove(s);
        });
        if let Some(known) = known {
            self.0.insert(start, (end, known));
        }
    }
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        start == end || self.0.range(..end).next_back().is_none_or(|(_, &(e, _))| e <= start)
    }
    pub fn change(&mut self, start: u64, end: u64, change: impl Fn(u64, bool) -> (u64, bool)) {
        if start == end {
            return;
        }
        self.cut(start);
        self.cut(end);
        for (_, (_, known)) in self.0.range_mut(start..end) {
            if let Known::Leaf(shift, bits, valid) = *known {
                let (bits, valid) = change(bits, valid);
                *known = Known::Leaf(shift, bits, valid);
            }
        }
    }
    /// Bit number `bit` of each output becomes `value`.
    #[allow(dead_code, reason = "the fuzz target changes no outputs")]
    pub fn alias(&mut self, start: u64, end: u64, bit: u32, value: bool, valid: Option<bool>) {
        if start == end {
            return;
        }
        self.cut(start);
        self.cut(end);
        let weight = 1u64 << bit;
        let leaves: Vec<_> =
            self.0.range(start..end).map(|(&start, &(end, known))| (start, end, known)).collect();
        for (start, end, known) in leaves {
            let Known::Leaf(shift, bits, was) = known else { continue };
            let mut at = start;
            while at < end {
                // Up to where the outputs' bit is another.
                let output = at.wrapping_add(shift);
                let next = end.min(at + (weight - (output & (weight - 1))));
                let shift = match (output & weight != 0, value) {
                    (false, true) => shift.wrapping_add(weight),
                    (true, false) => shift.wrapping_sub(weight),
                    _ => shift,
                };
                self.set(at, next, Some(Known::Leaf(shift, bits, valid.unwrap_or(was))));
                at = next;
            }
        }
    }
    pub fn at(&self, address: u64) -> Option<Known> {
        self.0
            .range(..=address)
            .next_back()
            .filter(|(_, (end, _))| address < *end)
            .map(|(_, &(_, known))| known)
    }
    /// With neighbours that say the same joined.
    fn joined(&self) -> Vec<(u64, u64, Known)> {
        let mut list: Vec<(u64, u64, Known)> = Vec::new();
        for (&start, &(end, known)) in &self.0 {
            match list.last_mut() {
                Some(last) if last.1 == start && last.2 == known => last.1 = end,
                _ => list.push((start, end, known)),
            }
        }
        list
    }
}

/// First address, level, whether it is in a run, what is known of it.
pub type Said = (u64, u8, bool, Known);

/// The fewest entries that can say what the list does, and how many tables they take.
pub fn canonical<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>, flat: &Flat) -> (Vec<Said>, usize) {
    let geometry = map.geometry();
    let runs = map.capabilities().contains(Capabilities::CONTIGUOUS);
    let (mut said, mut tables) = (Vec::new(), geometry.root_tables());
    let level = geometry.start_level();
    let entries = S::ENTRIES * geometry.root_tables();
    fewest::<S>(&flat.joined(), (level, 0, entries), runs, &mut said, &mut tables);
    (said, tables)
}

/// What one entry can say of all that it spans, if it can.
fn single<S: Shape>(list: &[(u64, u64, Known)], level: u8, at: u64) -> Option<Option<Known>> {
    let size = geometry::level_size::<S>(level);
    let next = list.partition_point(|&(_, end, _)| end <= at);
    match list.get(next) {
        Some(&(start, end, known)) if start <= at && at + size <= end => match known {
            Known::Leaf(shift, ..) if level == 0 || !at.wrapping_add(shift).is_multiple_of(size) => None,
            known => Some(Some(known)),
        },
        Some(&(start, ..)) if start < at + size => None,
        _ => Some(None),
    }
}

fn fewest<S: Shape>(
    list: &[(u64, u64, Known)],
    (level, base, entries): (u8, u64, usize),
    runs: bool,
    said: &mut Vec<Said>,
    tables: &mut usize,
) {
    let size = geometry::level_size::<S>(level);
    for index in 0..entries as u64 {
        let at = base + index * size;
        match single::<S>(list, level, at) {
            Some(None) => {}
            Some(Some(known)) => {
                let run = size * S::RUN as u64;
                let first = at & !(run - 1);
                let is_run = |shift: u64| {
                    first.wrapping_add(shift).is_multiple_of(run)
                        && (0..S::RUN as u64)
                            .all(|i| single::<S>(list, level, first + i * size) == Some(Some(known)))
                };
                let in_run = runs && matches!(known, Known::Leaf(shift, ..) if is_run(shift));
                said.push((at, level, in_run, known));
            }
            None => {
                *tables += 1;
                fewest::<S>(list, (level + 1, at, S::ENTRIES), runs, said, tables);
            }
        }
    }
}

/// The entries of a map that say something.
pub fn entries<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>) -> Vec<Said> {
    let mut said = Vec::new();
    let mut cpu = map.cpu(1).unwrap();
    let all = Range::new(0, 1 << map.geometry().input_bits()).unwrap();
    let _ = cpu.read().walk(all, |visited| {
        let (start, level) = (visited.start, visited.level);
        match visited.entry {
            Entry::Leaf { output, attributes, contiguous, valid } => {
                let shift = output.get().wrapping_sub(start);
                said.push((start, level, contiguous, Known::Leaf(shift, attributes.bits(), valid)));
            }
            Entry::State(state) => said.push((start, level, false, Known::State(state.get()))),
            _ => {}
        }
        core::ops::ControlFlow::<()>::Continue(())
    });
    said
}

/// What the tables mean, and whether their runs are whole.
fn read<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>) -> Flat {
    let mut flat = Flat::default();
    let mut run: Option<(walk::Visited<R>, u64)> = None;
    // Slot 0 is the writer's, which the fuzz target may still have.
    let mut cpu = map.cpu(1).unwrap();
    let all = Range::new(0, 1 << map.geometry().input_bits()).unwrap();
    let mut last: Option<(u64, u64, Known)> = None;
    let _ = cpu.read().walk(all, |visited| {
        let size = geometry::level_size::<S>(visited.level);
        let known = match visited.entry {
            Entry::Leaf { output, attributes, contiguous, valid } => {
                assert!(run.is_none() || contiguous, "a run ends early at {:#x}", visited.start);
                if contiguous {
                    let (first, left) = run.unwrap_or((visited, S::RUN as u64));
                    if left == S::RUN as u64 {
                        assert!(
                            visited.start.is_multiple_of(size * left),
                            "a run begins at {:#x}",
                            visited.start
                        );
                        assert!(output.get().is_multiple_of(size * left), "a run maps to {output}");
                    }
                    assert_eq!(first.level, visited.level);
                    assert_eq!(attributes.bits() & CONTIGUOUS, 0);
                    run = (left > 1).then_some((first, left - 1));
                }
                Some(Known::Leaf(output.get().wrapping_sub(visited.start), attributes.bits(), valid))
            }
            Entry::State(state) => Some(Known::State(state.get())),
            Entry::Empty | Entry::Unlinked(_) => None,
            Entry::Table(_) | Entry::Changing => panic!("{:?} at {:#x}", visited.entry, visited.start),
        };
        assert!(
            run.is_none() || matches!(known, Some(Known::Leaf(..))),
            "a run has a hole at {:#x}",
            visited.start
        );
        // Neighbours that say the same are joined here, for a list of pages would be long.
        match (&mut last, known) {
            (Some((_, end, before)), Some(known)) if *end == visited.start && *before == known => {
                *end += size
            }
            _ => {
                if let Some((start, end, known)) = last.take() {
                    flat.0.insert(start, (end, known));
                }
                last = known.map(|known| (visited.start, visited.start + size, known));
            }
        }
        core::ops::ControlFlow::<()>::Continue(())
    });
    if let Some((start, end, known)) = last {
        flat.0.insert(start, (end, known));
    }
    flat
}

/// The tables mean what the list says.
pub fn compare<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>, flat: &Flat) {
    let (found, expected) = (read(map).joined(), flat.joined());
    if let Some(at) = (0..found.len().max(expected.len())).find(|&i| found.get(i) != expected.get(i)) {
        panic!("the map has {:x?}, expected {:x?}", found.get(at), expected.get(at));
    }
}
