//! Ranges of a linear map that go over to the host and come back: see [the room](super).
//!
//! Invariant: while a range changes sides nothing of it translates; who stops half way leaves it so.

use core::fmt;
use core::ops::ControlFlow;

use rmm_abi::v1_0::rsi::{RsiResponse, RsiRipas, RsiRipasChangeFlags};
use smccc::Call;

use super::rsi::{Config, Rsi, RsiError};
use crate::mapping::geometry::{Granule4K, Shape, level_size};
use crate::mapping::{Address, Change, Debt, El1And0, Entry, Leaves, Map, MapError, Mmu, Pa, Range, Writer};
use crate::stage1::{LinearMap, SetMemoryError};

/// How often the monitor is asked again without having come any further, before that is told.
const PATIENCE: u32 = 10_000;
/// Bytes of a block of level 2, and of a run of pages.
const BLOCK: u64 = level_size::<Granule4K>(2);
const RUN: u64 = level_size::<Granule4K>(3) << Granule4K::RUN_BITS;

/// Whose a range is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The realm's own: RIPAS RAM, at its protected address.
    Encrypted,
    /// The host's too: RIPAS EMPTY, at its alias.
    Decrypted,
}

/// What stopped a range half way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The host would not give the memory (A5.4, S_BZWWC).
    Rejected,
    /// The host has destroyed what was the realm's own at this address: it was not given up, and what it held is lost. To have the
    /// range all the same it is to be decrypted, and then encrypted.
    Destroyed(u64),
    /// The monitor has come no further for thousands of calls.
    Stalled,
    /// The monitor.
    Rsi(RsiError),
    /// The map. It has changed nothing since the range stopped translating.
    Memory(SetMemoryError),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected => write!(f, "the host would not"),
            Self::Destroyed(address) => write!(f, "the host has destroyed what was at {address:#x}"),
            Self::Stalled => write!(f, "the monitor comes no further"),
            Self::Rsi(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

/// A range that did not get to the side it was to be on. None of it translates. It can be tried again
/// ([`SharedMemory::retry`]), or given up ([`SharedMemory::give_up`]). Dropped, it stays as it is until somebody asks for all of it again.
#[must_use = "its range does not translate: try again, or give it up"]
#[derive(Debug, PartialEq, Eq)]
pub struct Unfinished {
    range: Range<Pa>,
    side: Side,
    /// Up to here RIPAS is as it was to be.
    done: u64,
    cause: Cause,
}

impl Unfinished {
    /// All of it.
    pub fn range(&self) -> Range<Pa> {
        self.range
    }
    /// Where it was to be.
    pub fn side(&self) -> Side {
        self.side
    }
    /// Why it is not.
    pub fn cause(&self) -> Cause {
        self.cause
    }
    /// The first address whose RIPAS is still what it was; those below have the new one. The end of the range, if only the map is not done.
    pub fn done(&self) -> u64 {
        self.done
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, side, done, cause } = self;
        write!(f, "{range} does not translate, and is {side:?} up to {done:#x}: {cause}")
    }
}

/// Why a range is not on the side it was to be on.
#[derive(Debug, PartialEq, Eq)]
pub enum SharingError {
    /// It meets the half of the address space that is shared, above this many bits. Nothing has changed.
    NotProtected {
        /// The end of the range.
        end: u64,
        /// Bits of a protected address.
        bits: u32,
    },
    /// It is pinned, or the map cannot make the change. Nothing has changed.
    Memory(SetMemoryError),
    /// It stopped half way.
    Unfinished(Unfinished),
}

impl fmt::Display for SharingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotProtected { end, bits } => {
                write!(f, "a range that ends at {end:#x} is not within the {bits} bits of what is protected")
            }
            Self::Memory(error) => error.fmt(f),
            Self::Unfinished(unfinished) => unfinished.fmt(f),
        }
    }
}

impl core::error::Error for SharingError {}

/// A realm's linear map, ranges of which go over to the host and come back. From any CPU, at any time; callers whose ranges overlap agree
/// among themselves who is first.
///
/// The call that reaches the monitor (`C`) may last as long as the host likes. If others may wait for this CPU meanwhile, to break a
/// translation, it is to be made from outside their [gate](crate::caps::gate::Gate::stand).
#[derive(Debug)]
pub struct SharedMemory<'m, M: Mmu, C> {
    linear: &'m LinearMap<El1And0, M>,
    rsi: Rsi<C>,
    shared: Change<El1And0>,
    own: Change<El1And0>,
    bits: u32,
    leaves: Leaves,
}

impl<'m, M: Mmu, C: Call> SharedMemory<'m, M, C> {
    /// Of the linear map of a realm that was made as `config` says. What comes back is joined to `leaves`.
    pub fn new(linear: &'m LinearMap<El1And0, M>, rsi: Rsi<C>, config: &Config, leaves: Leaves) -> Self {
        let bits = config.shared_bit();
        let to = |value| Change::output_bit(bits, value).unwrap_or(Change::INVALIDATE);
        Self { linear, rsi, shared: to(true), own: to(false), bits, leaves }
    }

    /// The linear map.
    pub fn linear(&self) -> &'m LinearMap<El1And0, M> {
        self.linear
    }

    /// Shares the pages of `range` with the host: on every CPU they translate to their aliases when it returns, with the permissions that
    /// they had. What they held is lost. What is not mapped stays so; an empty range changes nothing.
    ///
    /// # Errors
    /// [`SharingError`].
    pub fn set_memory_decrypted(&self, range: Range<Pa>) -> Result<(), SharingError> {
        self.change(range, Side::Decrypted)
    }

    /// Takes the pages of `range` back: on every CPU they translate to their protected addresses when it returns. What was shared holds
    /// anything then, also what the host has put there; what was the realm's own already keeps what it holds.
    ///
    /// # Errors
    /// [`SharingError`].
    pub fn set_memory_encrypted(&self, range: Range<Pa>) -> Result<(), SharingError> {
        self.change(range, Side::Encrypted)
    }

    /// Goes on where a range stopped.
    ///
    /// # Errors
    /// [`SharingError::Unfinished`], if it stops again.
    pub fn retry(&self, unfinished: Unfinished) -> Result<(), SharingError> {
        let Unfinished { range, side, done, .. } = unfinished;
        self.finish(range, side, done)
    }

    /// Leaves the range of what could not be finished without leaves: no call makes it translate any more.
    ///
    /// # Errors
    /// [`SharingError::Unfinished`] if the map cannot say so, with [`Cause::Memory`]: it goes on not translating.
    pub fn give_up(&self, unfinished: Unfinished) -> Result<(), SharingError> {
        let unmap = || -> Result<(), SetMemoryError> {
            let range = self.linear.input(unfinished.range)?;
            self.write(|writer| writer.unmap(range).map(Debt::flush))
        };
        let stopped =
            |error| SharingError::Unfinished(Unfinished { cause: Cause::Memory(error), ..unfinished });
        unmap().map_err(stopped)
    }

    fn change(&self, range: Range<Pa>, side: Side) -> Result<(), SharingError> {
        if range.is_empty() {
            return Ok(());
        }
        if range.end() > 1 << self.bits {
            return Err(SharingError::NotProtected { end: range.end(), bits: self.bits });
        }
        self.linear.set_memory_valid(range, false).map_err(SharingError::Memory)?;
        self.finish(range, side, range.start().get())
    }

    /// The steps after a range has stopped translating.
    fn finish(&self, range: Range<Pa>, side: Side, mut done: u64) -> Result<(), SharingError> {
        let stopped = |done, cause| SharingError::Unfinished(Unfinished { range, side, done, cause });
        self.set_ripas(range, side, &mut done).map_err(|cause| stopped(done, cause))?;
        let finished = match side {
            Side::Decrypted => self.linear.protect(range, self.shared.then(Change::VALIDATE)),
            Side::Encrypted => self.take_back(range),
        };
        finished.map_err(|error| stopped(done, Cause::Memory(error)))
    }

    /// Makes the range's RIPAS, from `done` on, what `side` asks for.
    fn set_ripas(&self, range: Range<Pa>, side: Side, done: &mut u64) -> Result<(), Cause> {
        const ANY: RsiRipasChangeFlags = RsiRipasChangeFlags::CHANGE_DESTROYED;
        const KNOWN: RsiRipasChangeFlags = RsiRipasChangeFlags::empty();
        while *done < range.end() {
            // A part of a range is one.
            let part = |end: u64| Range::<Pa>::new(*done, end - *done).map_err(|_| Cause::Stalled);
            let rest = part(range.end())?;
            let (part, ripas, flags) = match side {
                Side::Decrypted => (rest, RsiRipas::Empty, ANY),
                Side::Encrypted => match self.first_part(rest)? {
                    (end, true) => (part(end)?, RsiRipas::Ram, ANY),
                    (end, false) => (part(end)?, RsiRipas::Ram, KNOWN),
                },
            };
            self.set_ripas_of(part, ripas, flags, done)?;
        }
        Ok(())
    }

    /// The end of what is of one kind at the start of a range, and whether that was shared: its leaves still have their outputs.
    fn first_part(&self, range: Range<Pa>) -> Result<(u64, bool), Cause> {
        let input = self.linear.input(range).map_err(Cause::Memory)?;
        let is_shared =
            |entry| matches!(entry, Entry::Leaf { output, .. } if output.get() >> self.bits & 1 != 0);
        let mut first = None;
        let end = self.write(|writer| {
            Ok(writer.walk(input, |visited| {
                let shared = is_shared(visited.entry);
                match *first.get_or_insert(shared) == shared {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(visited.start),
                }
            }))
        });
        let end = end.map_err(Cause::Memory)?.break_value().unwrap_or(range.end());
        Ok((end, first == Some(true)))
    }

    /// Makes the RIPAS of a range, which `done` is the start of, this one.
    fn set_ripas_of(
        &self,
        range: Range<Pa>,
        ripas: RsiRipas,
        flags: RsiRipasChangeFlags,
        done: &mut u64,
    ) -> Result<(), Cause> {
        let mut patience = PATIENCE;
        while *done < range.end() {
            let Ok(rest) = Range::<Pa>::new(*done, range.end() - *done) else { return Err(Cause::Stalled) };
            let change = self.rsi.ipa_state_set(rest, ripas, flags).map_err(Cause::Rsi)?;
            let is_further = change.new_base > *done;
            *done = change.new_base;
            if change.response == RsiResponse::Reject {
                return Err(Cause::Rejected);
            }
            if is_further {
                patience = PATIENCE;
                continue;
            }
            // The host may not have come to it; or it cannot, at what it has destroyed (A5.4, I_GXDDX).
            if !flags.contains(RsiRipasChangeFlags::CHANGE_DESTROYED)
                && self.rsi.ipa_state_get(rest).map_err(Cause::Rsi)?.0 == RsiRipas::Destroyed
            {
                return Err(Cause::Destroyed(*done));
            }
            patience -= 1;
            if patience == 0 {
                return Err(Cause::Stalled);
            }
        }
        Ok(())
    }

    /// Makes a range translate to what is the realm's own, and joins it.
    fn take_back(&self, range: Range<Pa>) -> Result<(), SetMemoryError> {
        let (input, change) = (self.linear.input(range)?, self.own.then(Change::VALIDATE));
        if self.clear_of_pinned(range, BLOCK) == Some(range) {
            return self.write(|writer| writer.protect_and_collapse(input, change, self.leaves));
        }
        self.linear.protect(range, change)?;
        let runs = Leaves { blocks: false, ..self.leaves };
        for (unit, leaves) in [(BLOCK, self.leaves), (RUN, runs)] {
            if let Some(part) = self.clear_of_pinned(range, unit) {
                let input = self.linear.input(part)?;
                // What cannot be joined now works all the same.
                let _ = self.write(|writer| writer.collapse(input, leaves));
            }
        }
        Ok(())
    }

    /// A range without what is of a unit at either end that has something pinned too: that stays in pages, never to be split.
    fn clear_of_pinned(&self, range: Range<Pa>, unit: u64) -> Option<Range<Pa>> {
        let is_pinned = |address: u64| {
            let of_unit = Range::<Pa>::new(address & !(unit - 1), unit);
            of_unit.is_ok_and(|of_unit| self.linear.pinned().any(|pinned| pinned.overlaps(of_unit)))
        };
        let (mut start, mut end) = (range.start().get(), range.end());
        if is_pinned(start) {
            start = start.next_multiple_of(unit);
        }
        if is_pinned(end - 1) {
            end &= !(unit - 1);
        }
        (start < end).then(|| Range::new(start, end - start).ok()).flatten()
    }

    /// Does `work` as the map's writer.
    fn write<T>(
        &self,
        work: impl FnOnce(&mut Writer<'_, 'm, El1And0, M>) -> Result<T, MapError>,
    ) -> Result<T, SetMemoryError> {
        let map: &'m Map<El1And0, M> = self.linear.map();
        let mut writer = loop {
            match map.try_write() {
                Some(writer) => break writer,
                None => map.mmu().wait(),
            }
        };
        work(&mut writer).map_err(SetMemoryError::Map)
    }
}
