//! What each regime offers to try: attributes, and changes with what they do to attribute bits and validity. The fuzz target has this
//! file too.

use super::*;

const RO: u64 = 1 << 7;
const S2_WRITE: u64 = 1 << 7;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const DBM: u64 = 1 << 51;
const TAG: u64 = 0b111 << 56;

/// A change; bits it sets, bits it clears, what it makes of validity.
type Meant<R> = (Change<R>, u64, u64, Option<bool>);

/// A regime with attributes and changes.
pub trait Tried: Regime {
    const ATTRIBUTES: &'static [Attributes<Self>];
    const CHANGES: &'static [Meant<Self>];
}

impl Tried for El2 {
    const ATTRIBUTES: &'static [Attributes<Self>] = &[
        Attributes::<Self>::CODE,
        Attributes::<Self>::CONSTANTS,
        Attributes::<Self>::DATA,
        Attributes::<Self>::DEVICE,
    ];
    const CHANGES: &'static [Meant<Self>] = &[
        (Change::<Self>::READ_ONLY, RO, DBM, None),
        (Change::<Self>::WRITABLE, UXN, RO, None),
        (Change::<Self>::EXECUTABLE, RO, UXN | DBM, None),
        (Change::<Self>::NO_EXECUTE, UXN, 0, None),
        (Change::<Self>::INVALIDATE, 0, 0, Some(false)),
        (Change::<Self>::VALIDATE, 0, 0, Some(true)),
        (Change::<Self>::software(5), 5 << 56, TAG, None),
        (Change::<Self>::to(Attributes::<Self>::DATA), Attributes::<Self>::DATA.bits(), !0, None),
        (Change::<Self>::to(Attributes::<Self>::DEVICE), Attributes::<Self>::DEVICE.bits(), !0, None),
        (Change::<Self>::WRITABLE.then(Change::<Self>::VALIDATE), UXN, RO, Some(true)),
    ];
}

impl Tried for El1And0 {
    const ATTRIBUTES: &'static [Attributes<Self>] = &[
        Attributes::<Self>::CODE,
        Attributes::<Self>::DATA,
        Attributes::<Self>::USER_CODE,
        Attributes::<Self>::USER_DATA,
        Attributes::<Self>::DEVICE,
    ];
    const CHANGES: &'static [Meant<Self>] = &[
        (Change::<Self>::READ_ONLY, RO, DBM, None),
        (Change::<Self>::WRITABLE, PXN | UXN, RO, None),
        (Change::<Self>::EXECUTABLE, RO, PXN | DBM, None),
        (Change::<Self>::NO_EXECUTE, PXN | UXN, 0, None),
        (Change::<Self>::INVALIDATE, 0, 0, Some(false)),
        (Change::<Self>::VALIDATE, 0, 0, Some(true)),
        (Change::<Self>::to(Attributes::<Self>::USER_CODE), Attributes::<Self>::USER_CODE.bits(), !0, None),
        (Change::<Self>::to(Attributes::<Self>::USER_DATA), Attributes::<Self>::USER_DATA.bits(), !0, None),
    ];
}

impl Tried for Stage2 {
    const ATTRIBUTES: &'static [Attributes<Self>] = &[Attributes::<Self>::RAM, Attributes::<Self>::IO];
    const CHANGES: &'static [Meant<Self>] = &[
        (Change::<Self>::READ_ONLY, 0, S2_WRITE | DBM, None),
        (Change::<Self>::WRITABLE, S2_WRITE, 0, None),
        (Change::<Self>::NO_EXECUTE, UXN, PXN, None),
        (Change::<Self>::EXECUTABLE, 0, UXN | PXN, None),
        (Change::<Self>::INVALIDATE, 0, 0, Some(false)),
        (Change::<Self>::VALIDATE, 0, 0, Some(true)),
        (Change::<Self>::software(2), 2 << 56, TAG, None),
        (Change::<Self>::to(Attributes::<Self>::IO), Attributes::<Self>::IO.bits(), !0, None),
    ];
}
