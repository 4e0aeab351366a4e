//! What can be wrong.
//!
//! Invariant: each verdict is one kind of mistake, and its message has the addresses and the entries that convict.

use std::fmt;

/// What the machine has seen that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of what kind.
    pub kind: Kind,
    /// Where, and what was found there.
    pub message: String,
}

impl Verdict {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

/// The kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A TLB may hold two entries of different size for one address, which the level of FEAT_BBM does not allow, or where nobody could
    /// take the abort (R_KFLJB, I_HYQMB).
    SizeConflict,
    /// The same of an entry with the Contiguous bit and one without (R_KHRBC, R_FCPSG).
    ContiguousConflict,
    /// Two live translations of one address, of different output or memory attributes (R_WHZWS).
    TwoTranslations,
    /// A walk may read a table that the pool has.
    FreedTable,
    /// A walk may read words of a table that nobody has written since it was taken.
    UnfilledTable,
    /// A table is given back while a walk may still reach it, from the root or from what a CPU has cached.
    ReusedWhileHeld,
    /// Software reads or writes a table that the pool has.
    SoftwareUseAfterFree,
    /// A call is over and a CPU may still translate as before it (R_GPPYH).
    Stale,
    /// A walk translates an address to what neither was there nor is to be there.
    WrongTranslation,
    /// A walk faults where there is to be a translation all the time.
    TransientFault,
    /// A call is over and the tables do not say what it was asked for.
    LostChange,
    /// An access or dirty flag that hardware has set is gone.
    LostFlag,
    /// A table that walkers reach is filled as if they did not.
    FillOfLinked,
    /// A word is stored over a value that the CPU has not seen: somebody else owned it.
    BlindStore,
    /// An exclusive or an atomic by a CPU with its MMU off.
    ExclusiveWithMmuOff,
    /// A read past a cache finds what was there before, or a cache hides what was written past it.
    StaleMemory,
    /// An instruction that the CPU does not have.
    Undefined,
    /// A CPU goes on without a context synchronization event that it needs (R_BLDZX, I_WZCBG).
    NotSynchronized,
    /// Every CPU waits for another.
    Deadlock,
    /// Tables are neither in the map nor in the pool.
    TableLeak,
    /// The engine has given up.
    Panic,
}
