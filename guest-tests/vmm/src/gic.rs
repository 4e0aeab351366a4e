//! A GICv3 for the RECs of a realm: distributor, redistributors, and what is in the list registers (IHI 0069).
//!
//! Invariant: an interrupt is in the list registers of one REC at most, and of none that is not inside.

use crate::access::Access;

/// An interrupt controller for at most `RECS` RECs (at most 16: they are the one cluster that an SGI can name). REC `n` has affinity 0.0.0.n.
///
/// How it is used, under one lock: [`enter`](Self::enter) before each RMI_REC_ENTER, [`leave`](Self::leave) as the first thing after it (whether it
/// succeeded or not), then whatever the exit was for; then each REC that [`kicks`](Self::kicks) names is made to exit (or wakes, if it waits).
pub struct Gic<const RECS: usize> {
    recs: usize,
}

impl<const RECS: usize> Gic<RECS> {
    /// One for that many RECs, as it is after reset.
    pub const fn new(recs: usize) -> Self {
        Self { recs }
    }

    /// An access to the distributor (64 KiB). None: a REC has to exit before the answer is known, and `kicks` names it; the REC that asks goes
    /// back without the access done (no RMI_EMULATED_MMIO), and so tries it again.
    pub fn distributor(&mut self, access: Access) -> Option<u64> {
        let _ = (access, self.recs);
        todo!()
    }

    /// An access to the redistributors (`recs` times 128 KiB, one after the other). None: as for [`distributor`](Self::distributor).
    pub fn redistributors(&mut self, access: Access) -> Option<u64> {
        let _ = access;
        todo!()
    }

    /// A device's line: SPIs by their INTID (32 and up). What is no SPI here is ignored.
    pub fn line(&mut self, intid: u32, asserted: bool) {
        let _ = (intid, asserted);
        todo!()
    }

    /// A line of one REC: PPIs by their INTID (16 to 31), so [`VIRTUAL_TIMER`](crate::lists::VIRTUAL_TIMER).
    pub fn private_line(&mut self, rec: usize, intid: u32, asserted: bool) {
        let _ = (rec, intid, asserted);
        todo!()
    }

    /// REC `from` has written `value` to ICC_SGI1R_EL1.
    pub fn sgi(&mut self, from: usize, value: u64) {
        let _ = (from, value);
        todo!()
    }

    /// REC `rec` has written `value` to ICC_DIR_EL1, which it could not itself (ICH_HCR_EL2.TDIR).
    pub fn deactivate(&mut self, rec: usize, value: u64) {
        let _ = (rec, value);
        todo!()
    }

    /// Takes what became of the list registers of `rec`: the values of its exit (gicv3_lrs, gicv3_hcr, gicv3_vmcr), or, if it was not entered,
    /// those that [`enter`](Self::enter) gave, and 0.
    pub fn leave(&mut self, rec: usize, lrs: &[u64], hcr: u64, vmcr: u64) {
        let _ = (rec, lrs, hcr, vmcr);
        todo!()
    }

    /// Fills the list registers that there are (`lrs` is as long as the GIC has them: GICV3_NUM_LRS) for an entry of `rec`. Returns gicv3_hcr:
    /// what interrupts the host (PPI 25, the maintenance interrupt, which the host has enabled) when there may be more to do.
    pub fn enter(&mut self, rec: usize, lrs: &mut [u64]) -> u64 {
        let _ = (rec, lrs);
        todo!()
    }

    /// Whether an interrupt is there for `rec` that ends a WFI of it.
    pub fn wakes(&self, rec: usize) -> bool {
        let _ = rec;
        todo!()
    }

    /// A bit for each REC for which there was news since its last entry, and since the last call of this.
    pub fn kicks(&mut self) -> u32 {
        todo!()
    }
}
