//! A block device (virtio 1.2, 5.2) over a [`Disk`].
//!
//! Invariant: a request is carried out within the disk, or answered by VIRTIO_BLK_S_IOERR.
//!
//! It reads, writes, flushes and tells its name; one queue; nothing is discarded, and there are no zoned requests.

use super::GuestMemory;
use super::mmio::{Function, Served};
use super::queue::{Broken, Chain, SIZE, word};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

const READ_ONLY: u64 = 1 << 5;
const SEG_MAX: u64 = 1 << 2;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;

const HEADER: usize = 16;
const NAME: [u8; 20] = *b"cloven\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Sectors before somebody else has a turn.
const TURN: u64 = 256;

// Kinds of requests.
const KIND_IN: u32 = 0;
const KIND_OUT: u32 = 1;
const KIND_FLUSH: u32 = 4;
const KIND_GET_ID: u32 = 8;
// What became of them.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A sector could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// What a block device reads and writes.
pub trait Disk {
    /// How many sectors it has.
    fn sectors(&self) -> u64;
    /// Reads a sector, which there is.
    ///
    /// # Errors
    /// [`Failed`].
    fn read(&mut self, sector: u64, into: &mut [u8; SECTOR]) -> Result<(), Failed>;
    /// Writes a sector, which there is.
    ///
    /// # Errors
    /// [`Failed`].
    fn write(&mut self, sector: u64, from: &[u8; SECTOR]) -> Result<(), Failed>;
    /// What was written outlives the power.
    ///
    /// # Errors
    /// [`Failed`].
    fn flush(&mut self) -> Result<(), Failed> {
        Ok(())
    }
    /// Whether nothing can be written.
    fn is_read_only(&self) -> bool {
        false
    }
}

/// A disk in memory: as many whole sectors as there are.
pub struct RamDisk<'a>(pub &'a mut [u8]);

impl Disk for RamDisk<'_> {
    fn sectors(&self) -> u64 {
        self.0.as_chunks::<SECTOR>().0.len() as u64
    }

    fn read(&mut self, sector: u64, into: &mut [u8; SECTOR]) -> Result<(), Failed> {
        *into = *self.0.as_chunks().0.get(sector as usize).ok_or(Failed)?;
        Ok(())
    }

    fn write(&mut self, sector: u64, from: &[u8; SECTOR]) -> Result<(), Failed> {
        *self.0.as_chunks_mut().0.get_mut(sector as usize).ok_or(Failed)? = *from;
        Ok(())
    }
}

/// A block device.
pub struct Block<D> {
    /// What it reads and writes.
    pub disk: D,
    /// Sectors of the request in hand that are done.
    done: u64,
}

impl<D: Disk> Block<D> {
    /// One over that disk.
    pub const fn new(disk: D) -> Self {
        Self { disk, done: 0 }
    }

    /// Reads or writes `bytes` from `sector` on; None: not yet all.
    fn transfer<M: GuestMemory>(
        &mut self,
        (kind, sector, bytes): (u32, u64, u64),
        chain: &Chain,
        memory: &M,
    ) -> Result<Option<u8>, Broken> {
        let sectors = bytes / SECTOR as u64;
        let is_within = sector.checked_add(sectors).is_some_and(|end| end <= self.disk.sectors());
        let is_refused = kind == KIND_OUT && self.disk.is_read_only();
        if !is_within || is_refused || !bytes.is_multiple_of(SECTOR as u64) {
            return Ok(Some(IOERR));
        }
        let end = sectors.min(self.done + TURN);
        for number in self.done..end {
            let (at, offset) = (sector + number, number * SECTOR as u64);
            let mut data = [0; SECTOR];
            let result = if kind == KIND_IN {
                let result = self.disk.read(at, &mut data);
                chain.write(memory, offset, &data)?;
                result
            } else {
                chain.read(memory, HEADER as u64 + offset, &mut data)?;
                self.disk.write(at, &data)
            };
            if result == Err(Failed) {
                return Ok(Some(IOERR));
            }
        }
        self.done = end;
        Ok((end == sectors).then_some(OK))
    }
}

impl<D: Disk> Function for Block<D> {
    const ID: u32 = 2;
    const QUEUES: usize = 1;

    fn features(&self) -> u64 {
        SEG_MAX | BLK_SIZE | FLUSH | if self.disk.is_read_only() { READ_ONLY } else { 0 }
    }

    /// Capacity in sectors, size_max (none), seg_max (without the header and the status), geometry (none), blk_size.
    fn config(&self, offset: u64) -> u8 {
        match offset {
            0..8 => self.disk.sectors().to_le_bytes()[offset as usize],
            12..16 => u32::from(SIZE - 2).to_le_bytes()[offset as usize - 12],
            20..24 => (SECTOR as u32).to_le_bytes()[offset as usize - 20],
            _ => 0,
        }
    }

    fn reset(&mut self) {
        self.done = 0;
    }

    fn serve<M: GuestMemory>(&mut self, _: usize, chain: &Chain, memory: &M) -> Result<Served, Broken> {
        let mut header = [0; HEADER];
        chain.read(memory, 0, &mut header)?;
        let (kind, sector) = (word(&header, 0) as u32, word(&header, 8));
        // The last byte is for the status.
        let room = chain.writable().checked_sub(1).ok_or(Broken)?;
        let status = match kind {
            KIND_IN | KIND_OUT => {
                let bytes = if kind == KIND_IN { room } else { chain.readable() - HEADER as u64 };
                match self.transfer((kind, sector, bytes), chain, memory)? {
                    Some(status) => status,
                    None => return Ok(Served::Partly),
                }
            }
            KIND_FLUSH => self.disk.flush().map_or(IOERR, |()| OK),
            KIND_GET_ID if room >= NAME.len() as u64 => {
                chain.write(memory, 0, &NAME)?;
                OK
            }
            KIND_GET_ID => IOERR,
            _ => UNSUPP,
        };
        self.done = 0;
        chain.write(memory, room, &[status])?;
        Ok(Served::Used(room as u32 + 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    use super::super::driver::{Driver, Shared};
    use super::*;

    const SECTORS: usize = 1024;
    const STATUS: u64 = Shared::DATA + 16;
    const BUFFER: u64 = Shared::DATA + 0x1000;

    struct Owned(Vec<u8>, bool);

    impl Disk for Owned {
        fn sectors(&self) -> u64 {
            SECTORS as u64
        }

        fn read(&mut self, sector: u64, into: &mut [u8; SECTOR]) -> Result<(), Failed> {
            RamDisk(&mut self.0).read(sector, into)
        }

        fn write(&mut self, sector: u64, from: &[u8; SECTOR]) -> Result<(), Failed> {
            assert!(!self.1);
            RamDisk(&mut self.0).write(sector, from)
        }

        fn is_read_only(&self) -> bool {
            self.1
        }
    }

    fn started(is_read_only: bool) -> Driver<Block<Owned>> {
        Driver::started(Block::new(Owned(vec![0; SECTORS * SECTOR], is_read_only)))
    }

    /// A request; its status.
    fn request(driver: &mut Driver<Block<Owned>>, kind: u32, sector: u64, bytes: u32) -> u8 {
        driver.memory.put(Shared::DATA, &kind.to_le_bytes());
        driver.memory.put(Shared::DATA + 8, &sector.to_le_bytes());
        driver.memory.put(STATUS, &[0xff]);
        let header = (Shared::DATA, 16, false);
        let half = bytes / 3;
        let is_write = kind != KIND_OUT;
        let data = [(BUFFER, half, is_write), (BUFFER + u64::from(half), bytes - half, is_write)];
        driver.give(0, &[header, data[0], data[1], (STATUS, 1, true)]);
        driver.notify(0);
        while driver.poll() {}
        driver.memory.get(STATUS, 1)[0]
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut driver = started(false);
        let data: Vec<u8> = (0..300 * SECTOR).map(|at| (at / 7) as u8).collect();
        driver.memory.put(BUFFER, &data);
        assert_eq!(request(&mut driver, KIND_OUT, 100, data.len() as u32), OK);
        assert_eq!(driver.device.function.disk.0[100 * SECTOR..400 * SECTOR], data);
        driver.memory.put(BUFFER, &vec![0; data.len()]);
        assert_eq!(request(&mut driver, KIND_IN, 100, data.len() as u32), OK);
        assert_eq!(driver.memory.get(BUFFER, data.len()), data);
        assert_eq!(request(&mut driver, KIND_FLUSH, 0, 0), OK);
        let used: Vec<u32> = driver.used(0).iter().map(|(_, written)| *written).collect();
        assert_eq!(used, [1, data.len() as u32 + 1, 1]);
    }

    #[test]
    fn a_request_beyond_the_disk_or_of_half_a_sector_is_an_error_and_changes_nothing() {
        let mut driver = started(false);
        driver.memory.put(BUFFER, &[1; 1024]);
        let wrong = [(1023, 1024), (1024, 512), (u64::MAX, 512), (0, 511), (0, 513)];
        for (sector, bytes) in wrong {
            for kind in [KIND_IN, KIND_OUT] {
                assert_eq!(request(&mut driver, kind, sector, bytes), IOERR, "{sector:x} {bytes}");
            }
        }
        assert!(driver.device.function.disk.0.iter().all(|byte| *byte == 0));
        assert_eq!(request(&mut driver, KIND_IN, 1023, 512), OK);
        assert!(!driver.needs_reset());
    }

    #[test]
    fn it_tells_its_name_and_refuses_what_it_does_not_know() {
        let mut driver = started(false);
        assert_eq!(request(&mut driver, KIND_GET_ID, 0, 20), OK);
        assert_eq!(driver.memory.get(BUFFER, 20), NAME);
        assert_eq!(request(&mut driver, KIND_GET_ID, 0, 8), IOERR);
        assert_eq!(request(&mut driver, 11, 0, 0), UNSUPP);
    }

    #[test]
    fn it_tells_its_size_and_whether_it_can_be_written() {
        for is_read_only in [false, true] {
            let mut driver = started(is_read_only);
            assert_eq!(driver.load(0x100, 8), 1024);
            assert_eq!(driver.load(0x10c, 4), 62);
            assert_eq!(driver.load(0x114, 4), 512);
            assert_eq!(driver.load(0x1f0, 8), 0);
            assert_eq!(driver.device.function.features() & READ_ONLY != 0, is_read_only);
            let expected = if is_read_only { IOERR } else { OK };
            assert_eq!(request(&mut driver, KIND_OUT, 0, 512), expected);
        }
    }

    #[test]
    fn a_reset_in_the_middle_of_a_request_ends_it() {
        let mut driver = started(false);
        driver.memory.put(Shared::DATA, &[0; 16]);
        driver.give(0, &[(Shared::DATA, 16, false), (BUFFER, 300 << 9, true), (STATUS, 1, true)]);
        driver.notify(0);
        driver.poll();
        driver.give(0, &[(Shared::DATA, 16, false), (BUFFER, 300 << 9, true), (STATUS, 1, true)]);
        driver.notify(0);
        assert_eq!(driver.used(0).len(), 1);
        driver.start();
        driver.device.function.disk.0[0] = 7;
        assert_eq!(request(&mut driver, KIND_IN, 0, 512), OK);
        assert_eq!(driver.memory.get(BUFFER, 1), [7]);
    }

    #[test]
    fn a_request_without_a_header_or_a_status_is_an_error_of_the_driver() {
        let chains: [&[_]; 3] = [
            &[(Shared::DATA, 15, false), (STATUS, 1, true)],
            &[(Shared::DATA, 16, false)],
            &[(STATUS, 1, true)],
        ];
        for chain in chains {
            let mut driver = started(false);
            driver.give(0, chain);
            driver.notify(0);
            assert!(driver.needs_reset(), "{chain:x?}");
        }
    }

    #[test]
    fn a_buffer_that_is_not_shared_is_not_touched() {
        for (ipa, bytes) in [(Shared::END, 512), (Shared::END - 1, 512), (0, 512), (u64::MAX - 511, 511)] {
            for is_write in [true, false] {
                let mut driver = started(false);
                driver.memory.put(Shared::DATA, &u32::from(!is_write).to_le_bytes());
                let [header, status] = [(Shared::DATA, 16, false), (STATUS, 1, true)];
                let rest = (BUFFER, 512 - (bytes % 512), is_write);
                driver.give(0, &[header, (ipa, bytes, is_write), rest, status]);
                driver.notify(0);
                assert!(driver.needs_reset(), "{ipa:x}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_requests_leave_what_they_would_leave_in_memory(
            requests in prop::collection::vec((any::<bool>(), 0..SECTORS as u64 + 2, 0..300u32, any::<u8>()), 1..20),
        ) {
            let mut driver = started(false);
            let mut model = vec![0; SECTORS * SECTOR];
            for (number, (is_write, sector, sectors, byte)) in requests.into_iter().enumerate() {
                let bytes = sectors as usize * SECTOR;
                let start = sector as usize * SECTOR;
                let data: Vec<u8> = (0..bytes).map(|at| (at / 512) as u8 ^ byte).collect();
                driver.memory.put(BUFFER, &data);
                let status = request(&mut driver, if is_write { KIND_OUT } else { KIND_IN }, sector, bytes as u32);
                prop_assert_eq!(driver.used(0).len(), 1, "{}", number);
                let Some(place) = model.get_mut(start..start + bytes) else {
                    prop_assert_eq!(status, IOERR);
                    continue;
                };
                prop_assert_eq!(status, OK);
                if is_write {
                    place.copy_from_slice(&data);
                } else {
                    prop_assert_eq!(&driver.memory.get(BUFFER, bytes), place);
                }
            }
            prop_assert_eq!(&driver.device.function.disk.0, &model);
        }
    }
}
