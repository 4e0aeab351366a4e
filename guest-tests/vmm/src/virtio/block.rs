//! A block device (virtio 1.2, 5.2) over a [`Disk`].
//!
//! Invariant: a request is carried out within the disk, or answered by VIRTIO_BLK_S_IOERR.

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// A sector could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// What a block device reads and writes.
pub trait Disk {
    /// How many sectors it has.
    fn sectors(&self) -> u64;
    /// Reads a sector.
    ///
    /// # Errors
    /// [`Failed`].
    fn read(&mut self, sector: u64, into: &mut [u8; SECTOR]) -> Result<(), Failed>;
    /// Writes a sector.
    ///
    /// # Errors
    /// [`Failed`].
    fn write(&mut self, sector: u64, from: &[u8; SECTOR]) -> Result<(), Failed>;
}

/// A disk in memory: whole sectors of it.
pub struct RamDisk<'a>(pub &'a mut [u8]);

/// A block device.
pub struct Block<D> {
    /// What it reads and writes.
    pub disk: D,
}
