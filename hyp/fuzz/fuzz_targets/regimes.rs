//! What each regime offers to try: attributes, and changes with what they do to attribute bits.

use hyp::mapping::*;

const RO: u64 = 1 << 7;
const DBM: u64 = 1 << 51;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const SOFTWARE: u64 = 0b111 << 56;

/// A change; bits it sets, bits it clears, what it makes of validity.
type Tried<R> = (Change<R>, u64, u64, Option<bool>);

/// A regime with attributes and changes.
pub trait Fuzzed: Regime {
    const ATTRIBUTES: &'static [Attributes<Self>];
    const CHANGES: &'static [Tried<Self>];
}

impl Fuzzed for El2 {
    const ATTRIBUTES: &'static [Attributes<Self>] = &[Attributes::<Self>::CODE, Attributes::<Self>::DATA];
    const CHANGES: &'static [Tried<Self>] = &[
        (Change::<Self>::READ_ONLY, RO, DBM, None),
        (Change::<Self>::WRITABLE, UXN, RO, None),
        (Change::<Self>::EXECUTABLE, RO, UXN | DBM, None),
        (Change::<Self>::INVALIDATE, 0, 0, Some(false)),
        (Change::<Self>::VALIDATE, 0, 0, Some(true)),
        (Change::<Self>::software(5), 5 << 56, SOFTWARE, None),
        (Change::<Self>::to(Attributes::<Self>::DEVICE), Attributes::<Self>::DEVICE.bits(), !0, None),
    ];
}

impl Fuzzed for El1And0 {
    const ATTRIBUTES: &'static [Attributes<Self>] =
        &[Attributes::<Self>::CODE, Attributes::<Self>::USER_DATA];
    const CHANGES: &'static [Tried<Self>] = &[
        (Change::<Self>::READ_ONLY, RO, DBM, None),
        (Change::<Self>::WRITABLE, PXN | UXN, RO, None),
        (Change::<Self>::INVALIDATE, 0, 0, Some(false)),
        (Change::<Self>::VALIDATE, 0, 0, Some(true)),
        (Change::<Self>::to(Attributes::<Self>::USER_CODE), Attributes::<Self>::USER_CODE.bits(), !0, None),
    ];
}

impl Fuzzed for Stage2 {
    const ATTRIBUTES: &'static [Attributes<Self>] = &[Attributes::<Self>::RAM, Attributes::<Self>::IO];
    const CHANGES: &'static [Tried<Self>] = &[
        (Change::<Self>::READ_ONLY, 0, RO | DBM, None),
        (Change::<Self>::WRITABLE, RO, 0, None),
        (Change::<Self>::NO_EXECUTE, UXN, PXN, None),
        (Change::<Self>::INVALIDATE, 0, 0, Some(false)),
        (Change::<Self>::VALIDATE, 0, 0, Some(true)),
        (Change::<Self>::software(2), 2 << 56, SOFTWARE, None),
    ];
}
