//! A trial of running guests: the host has EL2 run a few of its own instructions as a guest, over the host's stage 2 under another VMID.

/// Runs the trial's one guest on this CPU until it stops: [`Flags`], where it begins if it is fresh, its x0 then. The answer is the kind of the
/// exit (0 synchronous, 1 IRQ, 2 FIQ, 3 SError, all ones if it could not run), its syndrome, and the guest's x0 and x1; of an abort,
/// `HPFAR_EL2` in place of x1.
///
/// On the way EL2 answers what it answers any guest alone, and the SMC with [`ADD`] in x0, which adds x1 to x2 and goes on.
pub const RUN: u32 = 0xc600_001f;
/// The function of the call that is answered without an exit.
pub const ADD: u64 = 0xc400_0190;

bitflags::bitflags! {
    /// How the guest runs.
    #[derive(Clone, Copy, Debug)]
    pub struct Flags: u64 {
        /// From its reset.
        const FRESH = 1 << 0;
        /// WFI stops it.
        const TRAP_WFI = 1 << 1;
        /// The host says that it has nothing in its SVE registers.
        const NO_SVE = 1 << 2;
        /// The interrupt number 27 is pending for it.
        const INTERRUPT = 1 << 3;
        /// It goes on after the instruction at which it stopped.
        const ADVANCE = 1 << 4;
    }
}
