//! Regimes, leaf attributes and decoded entries (Arm ARM D8.3: translation table descriptor formats).
//!
//! Invariant: only this file knows which bit of an entry means what, and no stage 1 attribute value or change of one that can be
//! written here is both writable and executable.
//!
//! An entry whose valid bit is clear is the engine's to define; hardware looks at no other bit of it:
//!
//! | bits 1:0 | the others | is |
//! |---|---|---|
//! | `00` | all clear | nothing |
//! | `00` | not all clear | a leaf that does not translate for now: output and attributes as in a valid one |
//! | `10` | bits 3:2 `00` | software state, 60 bits from bit 4 on, for all that the entry spans |
//! | `10` | bits 3:2 `01` | a leaf being broken and made, or the first entry of a table that fell out: ask again from the root |
//! | `10` | bits 3:2 `10` | a table that was unlinked and waits for its last users, in bits 47:12 |

use core::fmt;
use core::marker::PhantomData;

use super::addr::{Address, Ipa, Pa, Va};
use super::geometry::{LAST_LEVEL, Shape, level_size};
use super::rule::Stage;

pub(super) const VALID: u64 = 1 << 0;
/// In a valid entry: a table at levels 0 to 2, a page at level 3. In an invalid one: no leaf.
pub(super) const TYPE: u64 = 1 << 1;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

const SH_INNER: u64 = 0b11 << 8;
const SH: u64 = 0b11 << 8;
const AF: u64 = 1 << 10;
const DBM: u64 = 1 << 51;
pub(super) const CONTIGUOUS: u64 = 1 << 52;
/// For software in leaves; the engine's lock of the table below in tables (D8.3.1: ignored in both).
pub(super) const LOCK: u64 = 1 << 55;
/// For the embedder, in leaves: bits 58:56.
const SOFTWARE_SHIFT: u32 = 56;
const SOFTWARE: u64 = 0b111 << SOFTWARE_SHIFT;
/// Page-based hardware attributes, the NSE and AMEC bits: not ours to change.
const UPPER: u64 = 0b1_1111 << 59;

// Hierarchical attributes in a table descriptor of stage 1 (D8.3.1.1): what the tables below cannot give back.
const TABLE_PXN: u64 = 1 << 59;
const TABLE_UXN: u64 = 1 << 60;
const TABLE_NO_EL0: u64 = 1 << 61;
const TABLE_READ_ONLY: u64 = 1 << 62;

// Stage 1 (D8.3.1.1, D8.4.1).
const ATTR_INDEX_SHIFT: u32 = 2;
const ATTR_INDEX: u64 = 0b111 << ATTR_INDEX_SHIFT;
const NS: u64 = 1 << 5;
const AP_EL0: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const NG: u64 = 1 << 11;
const GUARDED: u64 = 1 << 50;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;

// Stage 2 (D8.3.1.2, D8.4.2, D8.6.6 with HCR_EL2.FWB = 0).
const S2_MEMATTR: u64 = 0b1111 << 2;
const S2_MEMATTR_NORMAL_WB: u64 = 0b1111 << 2;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
const S2_FNXS: u64 = 1 << 11;
/// XN\[1:0\], of which 0b10 is execution at neither EL1 nor EL0, 0b00 at both.
const S2_XN_FIELD: u64 = 0b11 << 53;
const S2_XN: u64 = 0b10 << 53;

pub(super) const STATE: u64 = TYPE;
const STATE_SHIFT: u32 = 4;
pub(super) const KIND: u64 = 0b1111;
const CHANGING: u64 = TYPE | 1 << 2;
const UNLINKED: u64 = TYPE | 1 << 3;

/// The `MAIR_ELx` that stage 1 attributes index: 0 Device-nGnRE, 1 Normal Write-Back, read and write allocate.
pub const MAIR: u64 = 0xff04;
const MAIR_DEVICE: u64 = 0;
const MAIR_NORMAL: u64 = 1;

mod sealed {
    /// Some bits of a leaf, and how each of their values is called: not at all if the name is empty.
    pub struct Field(pub u64, pub &'static [(u64, &'static str)]);

    pub trait Sealed {
        /// What is said of a leaf, in this order.
        const FIELDS: &'static [Field];
    }
}
use sealed::{Field, Sealed};

const AF_NAMES: Field = Field(AF, &[(0, ""), (AF, "AF")]);
const SH_NAMES: Field = Field(SH, &[(0, "NSH"), (0b10 << 8, "OSH"), (SH_INNER, "ISH")]);
/// Those of [`MAIR`].
const ATTR_INDEX_NAMES: Field = Field(
    ATTR_INDEX,
    &[(MAIR_DEVICE << ATTR_INDEX_SHIFT, "DEVICE-nGnRE"), (MAIR_NORMAL << ATTR_INDEX_SHIFT, "NORMAL")],
);
const AP_NAMES: Field = Field(AP_READ_ONLY, &[(0, "RW"), (AP_READ_ONLY, "RO")]);
const GP_NAMES: Field = Field(GUARDED, &[(0, ""), (GUARDED, "GP")]);
const DBM_NAMES: Field = Field(DBM, &[(0, ""), (DBM, "DBM")]);
const SOFTWARE_NAMES: Field = Field(
    SOFTWARE,
    &[
        (0, ""),
        (1 << SOFTWARE_SHIFT, "SW1"),
        (2 << SOFTWARE_SHIFT, "SW2"),
        (3 << SOFTWARE_SHIFT, "SW3"),
        (4 << SOFTWARE_SHIFT, "SW4"),
        (5 << SOFTWARE_SHIFT, "SW5"),
        (6 << SOFTWARE_SHIFT, "SW6"),
        (7 << SOFTWARE_SHIFT, "SW7"),
    ],
);

impl Sealed for El2 {
    const FIELDS: &'static [Field] = &[
        AP_NAMES,
        Field(UXN, &[(0, "X"), (UXN, "XN")]),
        AF_NAMES,
        SH_NAMES,
        ATTR_INDEX_NAMES,
        // RES1.
        Field(AP_EL0, &[(AP_EL0, ""), (0, "AP[1]=0")]),
        GP_NAMES,
        DBM_NAMES,
        SOFTWARE_NAMES,
    ];
}
impl Sealed for El1And0 {
    const FIELDS: &'static [Field] = &[
        AP_NAMES,
        Field(AP_EL0, &[(0, ""), (AP_EL0, "EL0")]),
        Field(PXN, &[(0, "PX"), (PXN, "PXN")]),
        Field(UXN, &[(0, "UX"), (UXN, "UXN")]),
        AF_NAMES,
        Field(NG, &[(0, ""), (NG, "nG")]),
        SH_NAMES,
        ATTR_INDEX_NAMES,
        GP_NAMES,
        DBM_NAMES,
        SOFTWARE_NAMES,
    ];
}
impl Sealed for Stage2 {
    const FIELDS: &'static [Field] = &[
        Field(
            S2AP_READ | S2AP_WRITE,
            &[(S2AP_READ | S2AP_WRITE, "RW"), (S2AP_READ, "RO"), (S2AP_WRITE, "WO"), (0, "NA")],
        ),
        // At EL1 and EL0, at neither, at EL0, at EL1 (FEAT_XNX).
        Field(S2_XN_FIELD, &[(0, "X"), (S2_XN, "XN"), (0b01 << 53, "UX"), (0b11 << 53, "PX")]),
        AF_NAMES,
        SH_NAMES,
        Field(
            S2_MEMATTR,
            &[
                (S2_MEMATTR_NORMAL_WB, "NORMAL"),
                (0b1010 << 2, "NORMAL-WT"),
                (0b0101 << 2, "NORMAL-NC"),
                (0b0000 << 2, "DEVICE-nGnRnE"),
                (0b0001 << 2, "DEVICE-nGnRE"),
                (0b0010 << 2, "DEVICE-nGRE"),
                (0b0011 << 2, "DEVICE-GRE"),
            ],
        ),
        Field(S2_FNXS, &[(0, ""), (S2_FNXS, "FnXS")]),
        DBM_NAMES,
        SOFTWARE_NAMES,
    ];
}

/// A translation regime, or the stage of one, as a type: those of this file.
pub trait Regime: Sealed + Copy + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// What its tables translate.
    type Input: Address;
    /// How the regime is called in messages.
    const NAME: &'static str;
    /// Who translates with it.
    const STAGE: Stage;
    /// Whether its entries can be of one address space.
    const HAS_ASID: bool;
    /// Bits of a leaf that say who may do what, the access flag included: changed in place.
    const PERMISSIONS: u64;
    /// Bits of a leaf that say what memory it is: changed by a break only.
    const MEMORY: u64;
    /// Clear to make a leaf under DBM writable-dirty, or set.
    const DIRTY_CLEAR: u64;
    /// See [`Regime::DIRTY_CLEAR`].
    const DIRTY_SET: u64;
}

/// The EL2 regime with `HCR_EL2.E2H` = 0: one privilege level, one table root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El2;
/// Stage 1 of the EL1&0 regime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El1And0;
/// Stage 2 of the EL1&0 regime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2;

const STAGE_1_PERMISSIONS: u64 = AP_EL0 | AP_READ_ONLY | AF | GUARDED | DBM | PXN | UXN;
const STAGE_1_MEMORY: u64 = ATTR_INDEX | NS | SH | NG | UPPER;

impl Regime for El2 {
    type Input = Va;
    const NAME: &'static str = "EL2 stage 1";
    const STAGE: Stage = Stage::One;
    const HAS_ASID: bool = false;
    const PERMISSIONS: u64 = STAGE_1_PERMISSIONS;
    const MEMORY: u64 = STAGE_1_MEMORY;
    const DIRTY_CLEAR: u64 = AP_READ_ONLY;
    const DIRTY_SET: u64 = 0;
}
impl Regime for El1And0 {
    type Input = Va;
    const NAME: &'static str = "EL1&0 stage 1";
    const STAGE: Stage = Stage::One;
    const HAS_ASID: bool = true;
    const PERMISSIONS: u64 = STAGE_1_PERMISSIONS;
    const MEMORY: u64 = STAGE_1_MEMORY;
    const DIRTY_CLEAR: u64 = AP_READ_ONLY;
    const DIRTY_SET: u64 = 0;
}
impl Regime for Stage2 {
    type Input = Ipa;
    const NAME: &'static str = "stage 2";
    const STAGE: Stage = Stage::Two;
    const HAS_ASID: bool = false;
    const PERMISSIONS: u64 = S2AP_READ | S2AP_WRITE | AF | DBM | S2_XN_FIELD;
    const MEMORY: u64 = S2_MEMATTR | SH | S2_FNXS | UPPER;
    const DIRTY_CLEAR: u64 = 0;
    const DIRTY_SET: u64 = S2AP_WRITE;
}

/// Bits of a leaf that say what memory it is and where: changed by a break only.
pub(super) const fn memory_mask<R: Regime>() -> u64 {
    R::MEMORY | OUTPUT
}

/// Bits of a leaf that are its attributes: all but output, type, Contiguous and the engine's.
pub(super) const fn attribute_mask<R: Regime>() -> u64 {
    R::PERMISSIONS | R::MEMORY | SOFTWARE
}

/// The attribute bits of a leaf of regime `R`: memory type, shareability, permissions, access flag (set).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Attributes<R>(u64, PhantomData<R>);

impl<R> Attributes<R> {
    const fn from_bits(bits: u64) -> Self {
        Self(bits, PhantomData)
    }
    const fn stage1(index: u64, bits: u64) -> Self {
        Self::from_bits(index << ATTR_INDEX_SHIFT | SH_INNER | AF | bits)
    }
    /// Those of a raw leaf.
    #[inline(always)]
    pub(super) const fn of_leaf(raw: u64) -> Self
    where
        R: Regime,
    {
        Self::from_bits(raw & attribute_mask::<R>())
    }
    /// What tables with the bits `tables` above a leaf leave of it.
    pub(super) const fn below(self, tables: u64) -> Self
    where
        R: Regime,
    {
        Self::of_leaf(below_tables::<R>(self.0, tables))
    }
    /// The bits as they stand in a leaf.
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// The same with `value` (0 to 7; more is cut) in the embedder's three bits, by which leaves are kept from being joined with others.
    pub const fn marked(self, value: u8) -> Self {
        Self(self.0 & !SOFTWARE | ((value & 7) as u64) << SOFTWARE_SHIFT, PhantomData)
    }
    /// The embedder's three bits.
    pub const fn mark(self) -> u8 {
        (self.0 >> SOFTWARE_SHIFT & 7) as u8
    }
    /// Whether leaves of it are of one address space (nG); never at stage 2 and EL2.
    pub(super) const fn non_global(self) -> bool {
        self.0 & NG != 0
    }
}

// AP[1] is RES1 and bit 53 RES0 in a regime with one privilege level; bit 54 is its XN.
impl Attributes<El2> {
    /// Code: Normal memory, read and execute.
    pub const CODE: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | AP_READ_ONLY);
    /// Constants: Normal memory, read.
    pub const CONSTANTS: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | AP_READ_ONLY | UXN);
    /// Data: Normal memory, read and write.
    pub const DATA: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | UXN);
    /// Registers of a device: Device-nGnRE, read and write.
    pub const DEVICE: Self = Self::stage1(MAIR_DEVICE, AP_EL0 | UXN);
}

impl Attributes<El1And0> {
    /// Code of EL1: Normal memory, read and execute at EL1.
    pub const CODE: Self = Self::stage1(MAIR_NORMAL, AP_READ_ONLY | UXN);
    /// Constants of EL1: Normal memory, read.
    pub const CONSTANTS: Self = Self::stage1(MAIR_NORMAL, AP_READ_ONLY | PXN | UXN);
    /// Data of EL1: Normal memory, read and write.
    pub const DATA: Self = Self::stage1(MAIR_NORMAL, PXN | UXN);
    /// Registers of a device for EL1: Device-nGnRE, read and write.
    pub const DEVICE: Self = Self::stage1(MAIR_DEVICE, PXN | UXN);
    /// Code of EL0: Normal memory, read and execute at EL0, read at EL1; of one address space.
    pub const USER_CODE: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | AP_READ_ONLY | PXN | NG);
    /// Data of EL0: Normal memory, read and write at EL0 and EL1; of one address space.
    pub const USER_DATA: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | PXN | UXN | NG);
}

impl Attributes<Stage2> {
    /// RAM that stage 1 may use as it likes: type left to stage 1, read, write and execute.
    pub const RAM: Self = Self::from_bits(S2_MEMATTR_NORMAL_WB | SH_INNER | AF | S2AP_READ | S2AP_WRITE);
    /// Everything that is not RAM, for a host that knows its devices: type left to stage 1, read and write.
    pub const IO: Self =
        Self::from_bits(S2_MEMATTR_NORMAL_WB | SH_INNER | AF | S2AP_READ | S2AP_WRITE | S2_XN);
}

impl Attributes<Stage2> {
    /// Whether reads go through.
    pub const fn is_readable(self) -> bool {
        self.0 & S2AP_READ != 0
    }
    /// Whether writes go through.
    pub const fn is_writable(self) -> bool {
        self.0 & S2AP_WRITE != 0
    }
    /// The same, with just these accesses going through of reads and writes.
    pub const fn accessible(self, reads: bool, writes: bool) -> Self {
        let read = if reads { S2AP_READ } else { 0 };
        let write = if writes { S2AP_WRITE } else { 0 };
        Self::from_bits(self.0 & !(S2AP_READ | S2AP_WRITE) | read | write)
    }
    /// Whether EL1 and EL0 may execute.
    pub const fn is_executable(self) -> bool {
        self.0 & S2_XN_FIELD == 0
    }
}

/// In words, the permissions first; the bits that have no name come last as a number, so that what differs reads differently. With `{:#}` each
/// word has a column of its own. Memory types of stage 1 are those of [`MAIR`], of stage 2 those of `HCR_EL2.FWB` = 0.
impl<R: Regime> fmt::Display for Attributes<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unnamed = self.0;
        let mut gap = 0;
        for Field(mask, names) in R::FIELDS {
            let name = names.iter().find(|(value, _)| self.0 & mask == *value).map(|(_, name)| *name);
            if name.is_some() {
                unnamed &= !mask;
            }
            let name = name.unwrap_or("");
            let widest = names.iter().map(|(_, name)| name.len()).max().unwrap_or(0);
            let left = if f.alternate() { widest - name.len() } else { 0 };
            if name.is_empty() {
                gap += if f.alternate() { left + 1 } else { 0 };
            } else {
                write!(f, "{:gap$}{name}", "")?;
                gap = left + 1;
            }
        }
        if unnamed != 0 { write!(f, "{:gap$}+{unnamed:#x}", "") } else { Ok(()) }
    }
}

impl<R: Regime> fmt::Debug for Attributes<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x}", R::NAME, self.0)
    }
}

/// What [`Map::protect`](super::Map::protect) does to each leaf: bits to clear, then bits to set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Change<R> {
    set: u64,
    clear: u64,
    regime: PhantomData<R>,
}

impl<R: Regime> fmt::Debug for Change<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} +{:#x} -{:#x}", R::NAME, self.set, self.clear)
    }
}

impl<R: Regime> Change<R> {
    const fn bits(set: u64, clear: u64) -> Self {
        Self { set, clear, regime: PhantomData }
    }
    /// Stop translating; output, attributes and size stay with the entry.
    pub const INVALIDATE: Self = Self::bits(0, VALID);
    /// Translate again.
    pub const VALIDATE: Self = Self::bits(VALID, 0);
    /// The attributes become these, software bits included.
    pub const fn to(attributes: Attributes<R>) -> Self {
        Self::bits(attributes.bits(), attribute_mask::<R>() & !attributes.bits())
    }
    /// The embedder's three bits become `value` (0 to 7; more is cut).
    pub const fn software(value: u8) -> Self {
        let bits = ((value & 7) as u64) << SOFTWARE_SHIFT;
        Self::bits(bits, SOFTWARE & !bits)
    }
    /// Output address bit number `bit` (12 to 47) becomes `value`: the same memory by an alias of its address. Leaves, and runs of them,
    /// larger than the bit's weight cannot change so.
    pub const fn output_bit(bit: u32, value: bool) -> Option<Self> {
        if bit >= u64::BITS || OUTPUT & 1 << bit == 0 {
            return None;
        }
        Some(if value { Self::bits(1 << bit, 0) } else { Self::bits(0, 1 << bit) })
    }
    /// This one, then `next`.
    pub const fn then(self, next: Self) -> Self {
        Self::bits(self.set & !next.clear | next.set, self.clear & !next.set | next.clear)
    }
    /// Whether it touches what memory a leaf is.
    pub(super) const fn changes_memory(self) -> bool {
        (self.set | self.clear) & memory_mask::<R>() != 0
    }
    /// Bytes of the largest leaf or run that it can change: its outputs have to run on afterwards.
    pub(super) const fn largest(self) -> u64 {
        match (self.set | self.clear) & OUTPUT {
            0 => u64::MAX,
            outputs => 1 << outputs.trailing_zeros(),
        }
    }
    pub(super) const fn validates(self) -> bool {
        self.set & VALID != 0
    }
    pub(super) const fn invalidates(self) -> bool {
        self.clear & VALID != 0
    }
    /// Whether a leaf could become global by it.
    pub(super) const fn makes_global(self) -> bool {
        self.clear & NG != 0
    }
    /// The masks for leaves of `level`: bits to clear, bits to set.
    #[inline(always)]
    pub(super) const fn masks(self, level: u8) -> (u64, u64) {
        let page = if level == LAST_LEVEL { TYPE } else { 0 };
        let clear = if self.invalidates() { self.clear | page } else { self.clear };
        let set = if self.validates() { self.set | page } else { self.set };
        (clear, set)
    }
}

// What makes writable takes execution away, and the other way round.
impl Change<El2> {
    /// No writes, nor hardware's leave to make a leaf writable (DBM).
    pub const READ_ONLY: Self = Self::bits(AP_READ_ONLY, DBM);
    /// Writes, and no execution.
    pub const WRITABLE: Self = Self::bits(UXN, AP_READ_ONLY);
    /// Execution, and no writes.
    pub const EXECUTABLE: Self = Self::bits(AP_READ_ONLY, UXN | DBM);
    /// No execution.
    pub const NO_EXECUTE: Self = Self::bits(UXN, 0);
}

impl Change<El1And0> {
    /// No writes, nor hardware's leave to make a leaf writable (DBM).
    pub const READ_ONLY: Self = Self::bits(AP_READ_ONLY, DBM);
    /// Writes, and no execution.
    pub const WRITABLE: Self = Self::bits(PXN | UXN, AP_READ_ONLY);
    /// Execution at EL1, and no writes.
    pub const EXECUTABLE: Self = Self::bits(AP_READ_ONLY, PXN | DBM);
    /// No execution.
    pub const NO_EXECUTE: Self = Self::bits(PXN | UXN, 0);
}

impl Change<Stage2> {
    /// No writes, nor hardware's leave to make a leaf writable (DBM).
    pub const READ_ONLY: Self = Self::bits(0, S2AP_WRITE | DBM);
    /// Writes.
    pub const WRITABLE: Self = Self::bits(S2AP_WRITE, 0);
    /// Execution at EL1 and EL0.
    pub const EXECUTABLE: Self = Self::bits(0, S2_XN_FIELD);
    /// No execution.
    pub const NO_EXECUTE: Self = Self::bits(S2_XN, S2_XN_FIELD & !S2_XN);
}

/// What software says of addresses that do not translate: 60 bits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(u64);

impl State {
    /// The state of this value, if it has at most 60 bits.
    pub const fn new(value: u64) -> Option<Self> {
        if value >> (64 - STATE_SHIFT) == 0 { Some(Self(value)) } else { None }
    }
    /// The value.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What one raw entry says, decoded once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry<R: Regime> {
    /// No translation, and nothing known.
    Empty,
    /// No translation, and what software says of it.
    State(State),
    /// The next level's table.
    Table(Pa),
    /// A block or a page.
    Leaf {
        /// Where it begins.
        output: Pa,
        /// What may be done with it.
        attributes: Attributes<R>,
        /// Whether it is one of an aligned run of leaves that run on, which a TLB may hold as one.
        contiguous: bool,
        /// Whether it translates. One that does not keeps the rest for when it does again.
        valid: bool,
    },
    /// A leaf that is being broken and made: it will be one again in a moment.
    Changing,
    /// A table that translates no more and was not reused yet.
    Unlinked(Pa),
}

/// A 48-bit field as an address.
#[inline(always)]
pub(super) fn pa(bits: u64) -> Pa {
    Pa::from_field(bits & OUTPUT)
}

impl<R: Regime> Entry<R> {
    /// Decodes the raw entry of a table of `level` (0 to 3). A reserved encoding (a block at level 0 or 3) is
    /// [`Entry::Empty`], as it translates nothing for the hardware.
    pub fn decode<S: Shape>(raw: u64, level: u8) -> Self {
        if is_table(raw, level) {
            return Self::Table(pa(raw));
        }
        if is_leaf(raw, level) {
            return Self::Leaf {
                output: pa(raw & !(level_size::<S>(level) - 1)),
                attributes: Attributes::of_leaf(raw),
                contiguous: raw & CONTIGUOUS != 0,
                valid: raw & VALID != 0,
            };
        }
        match raw & KIND {
            STATE => Self::State(State(raw >> STATE_SHIFT)),
            CHANGING => Self::Changing,
            UNLINKED => Self::Unlinked(pa(raw)),
            _ => Self::Empty,
        }
    }

    /// The raw entry for a table of `level` (0 to 3).
    #[inline(always)]
    pub const fn encode(self, level: u8) -> u64 {
        match self {
            Self::Empty => 0,
            Self::State(state) => state.0 << STATE_SHIFT | STATE,
            Self::Table(table) => table.bits() | VALID | TYPE,
            Self::Leaf { output, attributes, contiguous, valid } => {
                let low = if valid { leaf_type(level) } else { 0 };
                let contiguous = if contiguous { CONTIGUOUS } else { 0 };
                output.bits() | attributes.bits() | low | contiguous
            }
            Self::Changing => CHANGING,
            Self::Unlinked(table) => table.bits() | UNLINKED,
        }
    }
}

// The same decisions on raw words, for loops over many.

/// The low bits of a valid leaf.
#[inline(always)]
const fn leaf_type(level: u8) -> u64 {
    if level == LAST_LEVEL { VALID | TYPE } else { VALID }
}

#[inline(always)]
pub(super) const fn is_table(raw: u64, level: u8) -> bool {
    raw & (VALID | TYPE) == VALID | TYPE && level < LAST_LEVEL
}

/// A leaf, translating or not.
#[inline(always)]
pub(super) const fn is_leaf(raw: u64, level: u8) -> bool {
    let low = raw & (VALID | TYPE);
    (low == leaf_type(level) || low == 0 && raw != 0) && level > 0
}

#[inline(always)]
pub(super) const fn is_changing(raw: u64) -> bool {
    raw & KIND == CHANGING
}

#[inline(always)]
pub(super) const fn is_unlinked(raw: u64) -> bool {
    raw & KIND == UNLINKED
}

/// The first entry of a table that waits to be given back, in a chain with `next`. To a walk that is still there it is
/// [`Entry::Changing`].
pub(super) const fn chained(next: Pa) -> u64 {
    next.bits() | CHANGING
}

/// A leaf of an embedder's that hardware may be marking: what it may have marked is set (D8.17.1, I_GXGZY, R_RTBRL: reporting too
/// much is allowed, losing is not).
pub(super) const fn marked<R: Regime>(raw: u64) -> u64 {
    if raw & DBM == 0 { raw | AF } else { (raw | AF) & !R::DIRTY_CLEAR | R::DIRTY_SET }
}

/// The first entry of a table that takes the place of `raw`, which is no table, of `level`; and what each next one adds. The Contiguous
/// bit is clear.
pub(super) const fn first_below<S: Shape>(raw: u64, level: u8) -> (u64, u64) {
    if !is_leaf(raw, level) {
        return (raw, 0);
    }
    let below = level + 1;
    let low = if raw & VALID != 0 { leaf_type(below) } else { 0 };
    // Below the block's own alignment the field holds nT and zeros, no address (D8.3.1).
    let not_output = OUTPUT & (level_size::<S>(level) - 1);
    (raw & !(not_output | VALID | TYPE | CONTIGUOUS) | low, level_size::<S>(below))
}

/// What one entry has to say one level higher to be as good as a table of `level` that begins with `raw` and runs on from it; nothing if
/// none could. The Contiguous bit is clear. The other way round than [`first_below`].
pub(super) const fn joined_above<S: Shape>(raw: u64, level: u8) -> Option<u64> {
    if !is_leaf(raw, level) {
        return if raw == 0 || raw & KIND == STATE { Some(raw) } else { None };
    }
    let above = level - 1;
    // A block below its own alignment has nT there, and no output.
    let output = OUTPUT & !(level_size::<S>(level) - 1);
    if above == 0 || raw & output & (level_size::<S>(above) - 1) != 0 {
        return None;
    }
    let low = if raw & VALID != 0 { leaf_type(above) } else { 0 };
    Some(raw & !(VALID | TYPE | CONTIGUOUS) | low)
}

/// What each next word adds in a table that runs on from `raw`, of `level`.
pub(super) const fn step<S: Shape>(raw: u64, level: u8) -> u64 {
    if is_leaf(raw, level) { level_size::<S>(level) } else { 0 }
}

/// Whether a leaf can be the first of a run: its output is a multiple of the run's size.
pub(super) const fn begins_run<S: Shape>(raw: u64, level: u8) -> bool {
    let output = OUTPUT & !(level_size::<S>(level) - 1);
    is_leaf(raw, level) && raw & output & ((level_size::<S>(level) << S::RUN_BITS) - 1) == 0
}

/// What attributes a leaf has below tables whose entries have the bits `tables` (D8.3.1.1, hierarchical attributes).
pub(super) const fn below_tables<R: Regime>(leaf: u64, tables: u64) -> u64 {
    if matches!(R::STAGE, Stage::Two)
        || tables & (TABLE_PXN | TABLE_UXN | TABLE_NO_EL0 | TABLE_READ_ONLY) == 0
    {
        return leaf;
    }
    let mut leaf = leaf;
    if tables & TABLE_READ_ONLY != 0 {
        // Nor may hardware make it writable: AP is not all that stands against it (D8.4.6, R_XZFQH).
        leaf = (leaf | AP_READ_ONLY) & !DBM;
    }
    if tables & TABLE_NO_EL0 != 0 && R::HAS_ASID {
        leaf &= !AP_EL0;
    }
    if tables & TABLE_UXN != 0 {
        leaf |= UXN;
    }
    if tables & TABLE_PXN != 0 && R::HAS_ASID {
        leaf |= PXN;
    }
    leaf
}

/// A leaf that takes a `table`'s place, with what that takes away; nothing if a dirty mark would be lost with it.
pub(super) const fn folded<R: Regime>(leaf: u64, table: u64) -> Option<u64> {
    let folded = below_tables::<R>(leaf, table);
    if (folded ^ leaf) & DBM == 0 { Some(folded) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::geometry::Granule4K;

    #[test]
    fn entries_decode_to_what_was_encoded_at_each_level() {
        let output = Pa::new(0x1234_4000_0000).unwrap();
        for level in 1..=3 {
            for contiguous in [false, true] {
                for valid in [false, true] {
                    let leaf = Entry::Leaf { output, attributes: Attributes::<El2>::DATA, contiguous, valid };
                    assert_eq!(Entry::decode::<Granule4K>(leaf.encode(level), level), leaf);
                }
            }
        }
        for level in 0..=2 {
            let table = Entry::<Stage2>::Table(output);
            assert_eq!(Entry::decode::<Granule4K>(table.encode(level), level), table);
        }
        assert_eq!(Entry::<El2>::decode::<Granule4K>(0, 2), Entry::Empty);
        let state = Entry::<El2>::State(State::new((1 << 60) - 1).unwrap());
        assert_eq!(State::new(1 << 60), None);
        for entry in [state, Entry::Changing, Entry::Unlinked(output)] {
            assert_eq!(Entry::decode::<Granule4K>(entry.encode(0), 0), entry);
        }
    }

    #[test]
    fn what_a_split_leaves_joins_to_what_it_was() {
        let output = Pa::new(0x1234_4000_0000).unwrap();
        for level in 1..LAST_LEVEL {
            for valid in [false, true] {
                let attributes = Attributes::<El2>::CODE;
                let leaf = Entry::Leaf { output, attributes, contiguous: false, valid }.encode(level);
                let (below, each) = first_below::<Granule4K>(leaf, level);
                assert_eq!(joined_above::<Granule4K>(below, level + 1), Some(leaf));
                assert_eq!(each, step::<Granule4K>(below, level + 1));
                assert_eq!(joined_above::<Granule4K>(below + each, level + 1), None);
            }
        }
        let state = Entry::<El2>::State(State::new(7).unwrap()).encode(3);
        for raw in [0, state] {
            assert_eq!(joined_above::<Granule4K>(raw, 3), Some(raw));
        }
        for entry in [Entry::<El2>::Changing, Entry::Unlinked(output), Entry::Table(output)] {
            assert_eq!(joined_above::<Granule4K>(entry.encode(2), 2), None);
        }
        // Nothing at level 0 is a leaf.
        let block = Entry::Leaf {
            output: Pa::new(0).unwrap(),
            attributes: Attributes::<El2>::DATA,
            contiguous: false,
            valid: true,
        };
        assert_eq!(joined_above::<Granule4K>(block.encode(1), 1), None);
    }

    #[test]
    fn reserved_encodings_translate_nothing() {
        assert_eq!(Entry::<El2>::decode::<Granule4K>(VALID, 0), Entry::Empty);
        assert_eq!(Entry::<El2>::decode::<Granule4K>(VALID, 3), Entry::Empty);
    }

    #[test]
    fn no_stage_1_leaf_is_writable_and_executable() {
        type A<R> = Attributes<R>;
        for a in [A::<El2>::CODE, A::<El2>::CONSTANTS, A::<El2>::DATA, A::<El2>::DEVICE] {
            assert!(a.bits() & AP_READ_ONLY != 0 || a.bits() & UXN != 0, "{a:?}");
        }
        for a in [
            A::<El1And0>::CODE,
            A::<El1And0>::CONSTANTS,
            A::<El1And0>::DATA,
            A::<El1And0>::DEVICE,
            A::<El1And0>::USER_CODE,
            A::<El1And0>::USER_DATA,
        ] {
            assert!(a.bits() & AP_READ_ONLY != 0 || a.bits() & (UXN | PXN) == UXN | PXN, "{a:?}");
        }
    }

    /// All attributes of a regime that differ in one bit from `base`, and that, in words.
    fn words<R: Regime>(base: u64) -> Vec<String> {
        let mask = attribute_mask::<R>();
        let bits = (0..64).map(|bit| 1u64 << bit).filter(|bit| mask & bit != 0);
        let all = bits.map(|bit| base ^ bit).chain([base]).map(Attributes::<R>::from_bits);
        all.map(|attributes| {
            let words: Vec<_> = attributes.to_string().split(' ').map(str::to_owned).collect();
            let columns = format!("{attributes:#}");
            assert!(columns.split_whitespace().eq(&words), "'{columns}', '{attributes}'");
            words.join(" ")
        })
        .collect()
    }

    #[test]
    fn attributes_that_differ_read_differently() {
        let mut random = 1u64;
        // Formatting takes Miri seconds, and it sees nothing new in it.
        for _ in 0..if cfg!(miri) { 1 } else { 200 } {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bits = random ^ random >> 29;
            let each = [words::<El2>, words::<El1And0>, words::<Stage2>];
            let masks = [attribute_mask::<El2>(), attribute_mask::<El1And0>(), attribute_mask::<Stage2>()];
            for (words, mask) in each.into_iter().zip(masks) {
                let mut words = words(bits & mask);
                let count = words.len();
                words.sort();
                words.dedup();
                assert_eq!(words.len(), count, "{:#x}", bits & mask);
            }
        }
    }
}
