//! Makes the realm (DEN0137 D1.2).
//!
//! Invariant: the measured steps are told in the order in which they are made, each as `@cloven measured …`, so that somebody else can compute the RIM.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use hyp::mapping::{Address, Pa, Range};
use rmm_abi::v1_0::rmi::{
    RmiCommand, RmiDataFlags, RmiFeatureRegister0, RmiHashAlgorithm, RmiRealmParams, RmiRecCreateFlags,
    RmiRecMpidr, RmiRecParams,
};
use rmm_abi::v1_0::{GRANULE_SIZE as GRANULE, VERSION, starting_rtts};
use zerocopy::{FromZeros, IntoBytes};

use super::granules::Granules;
use super::memory::blocks;
use super::{BLOCK, Board, DEVIATIONS, MAX_RECS, Made, PAGE, Policy, Problem};
use crate::rec::named_by_realm;
use crate::world::World;

/// Bits of IPA, if all fits in half of them. No more than that: the shared bit is part of what a device is given, and many devices take no addresses
/// of more than 32 bits.
const BITS: u32 = 32;
/// From this many on walks start at level 0.
const LEVEL_0_FROM: u32 = 44;

/// Bytes as hexadecimal digits, without the zeroes at their end.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().rposition(|&byte| byte != 0).map_or(1, |last| last + 1);
        // 16 at a time: a line may have thousands.
        self.0[..end.min(self.0.len())].chunks(16).try_for_each(|some| {
            let mut digits = [0; 32];
            for (pair, byte) in digits.chunks_exact_mut(2).zip(some) {
                let digit = |value: u8| b"0123456789abcdef"[usize::from(value & 0xf)];
                pair.copy_from_slice(&[digit(byte >> 4), digit(*byte)]);
            }
            f.write_str(core::str::from_utf8(&digits[..2 * some.len()]).unwrap_or_default())
        })
    }
}

/// A range of IPAs.
type Ipas = (u64, u64);

fn pages(range: Range<Pa>) -> Ipas {
    (range.start().get() & !(GRANULE - 1), range.end().next_multiple_of(GRANULE))
}

impl<W: World, B: Board> Policy<W, B> {
    /// Makes the realm, whose REC 0 can run then.
    ///
    /// # Errors
    /// [`Problem`]: nothing runs.
    #[inline(never)]
    pub fn make(&self) -> Result<(), Problem> {
        let (start, hz) = self.board.now();
        DEVIATIONS.iter().for_each(|text| self.say(format_args!("policy: {text}")));
        self.check()?;
        let features = self.find_rmm()?;
        let granules = &mut *self.lock();
        self.describe(granules, features)?;
        let scratch = granules.take().ok_or(Problem::NoGranule)?;
        let measured = self.measured();
        self.load(granules, scratch)?;
        let loaded = self.board.now().0;
        for part in self.rest(&measured) {
            self.init_ripas(granules, part)?;
        }
        for cpu in 0..self.plan.cpu_count {
            self.add_rec(granules, scratch, cpu)?;
        }
        granules.put(scratch, false);
        let rd = self.realm()?.rd;
        self.call(RmiCommand::RealmActivate, &[rd])?;
        self.recs[0].is_on.store(true, Relaxed);
        self.recs[0].go.store(true, Relaxed);
        let end = self.board.now().0;
        let unit = format_args!("ticks_at_{hz}_Hz");
        self.say(format_args!("@cloven figure policy.measured_in {} {unit}", loaded - start));
        self.say(format_args!("@cloven figure policy.made_in {} {unit}", end - start));
        self.figure("pages_measured", self.counts.given.load(Relaxed), "pages");
        self.figure("granules", granules.in_use(), "granules");
        self.figure("reserved", self.plan.granules.size(), "bytes");
        Ok(())
    }

    /// Looks whether the plan can be carried out.
    fn check(&self) -> Result<(), Problem> {
        let plan = &self.plan;
        if plan.cpu_count > MAX_RECS {
            return Err(Problem::TooManyCpus(plan.cpu_count));
        }
        for (cpu, &affinity) in plan.cpus[..plan.cpu_count].iter().enumerate() {
            if named_by_realm(affinity) != Some(RmiRecMpidr::from_index(cpu as u64)) {
                return Err(Problem::Affinity(cpu, affinity));
            }
        }
        let measured = self.measured();
        for (number, part) in measured.iter().enumerate().filter_map(|(n, part)| Some((n, (*part)?))) {
            const WHAT: [&str; 3] = [
                "the kernel is not in RAM:",
                "the initramfs is not in RAM:",
                "the device tree is not in RAM:",
            ];
            if !plan.ram.have(part) {
                return Err(Problem::Place(WHAT[number], part.0));
            }
            let meets = |other: &&Ipas| other.0 < part.1 && part.0 < other.1;
            if measured[..number].iter().flatten().find(meets).is_some() {
                return Err(Problem::Place("two things that are measured share the granule", part.0));
            }
        }
        let starts = [Some(plan.kernel), plan.initrd, Some(plan.tree)];
        match starts.iter().flatten().find(|range| !range.start().get().is_multiple_of(GRANULE)) {
            Some(range) => {
                Err(Problem::Place("what is measured does not begin with a granule:", range.start().get()))
            }
            None => Ok(()),
        }
    }

    /// RMI_VERSION and RMI_FEATURES.
    fn find_rmm(&self) -> Result<RmiFeatureRegister0, Problem> {
        self.call(RmiCommand::Version, &[VERSION.bits()]).map_err(|_| Problem::NoRmm)?;
        let [value, ..] = self.call(RmiCommand::Features, &[0])?;
        Ok(RmiFeatureRegister0::from_bits(value))
    }

    /// Bits of IPA for all RAM and all devices in the protected half, and as much again.
    fn bits(&self, most: u32) -> Result<u32, Problem> {
        let plan = &self.plan;
        let top = plan.ram.iter().chain(plan.devices.iter()).map(|(_, end)| end).max().unwrap_or(0);
        let least = u64::BITS - top.saturating_sub(1).leading_zeros() + 1;
        if least > most { Err(Problem::Bits(least)) } else { Ok(least.max(BITS.min(most))) }
    }

    /// The descriptor and the roots.
    #[inline(never)]
    fn describe(&self, granules: &mut Granules, features: RmiFeatureRegister0) -> Result<(), Problem> {
        let bits = self.bits(features.s2sz() as u32)?;
        let level = if bits < LEVEL_0_FROM { 1 } else { 0 };
        let count = starting_rtts(bits, level, false).ok_or(Problem::Bits(bits))?;
        let algorithm =
            if features.hash_sha_256() == 1 { RmiHashAlgorithm::Sha256 } else { RmiHashAlgorithm::Sha512 };
        let roots = granules.take_first(count as usize).ok_or(Problem::NoGranule)?;
        let rd = granules.take().ok_or(Problem::NoGranule)?;
        let scratch = granules.take().ok_or(Problem::NoGranule)?;
        for granule in (0..u64::from(count)).map(|number| roots + number * GRANULE).chain([rd]) {
            self.call(RmiCommand::GranuleDelegate, &[granule])?;
        }
        let mut params = RmiRealmParams::new_zeroed();
        params.s2sz = bits as u8;
        (params.num_bps, params.num_wps) = (features.num_bps() as u8, features.num_wps() as u8);
        (params.hash_algo, params.vmid) = (algorithm.bits(), 1);
        (params.rtt_base, params.rtt_level_start, params.rtt_num_start) = (roots, level, count);
        self.write(scratch, 0, params.as_bytes())?;
        self.call(RmiCommand::RealmCreate, &[rd, scratch])?;
        self.say(format_args!(
            "@cloven measured realm 0 {bits} 0 {} {} 0 {}",
            features.num_bps(),
            features.num_wps(),
            algorithm.bits()
        ));
        granules.put(scratch, false);
        self.made.call_once(|| Made { rd, shared: 1 << (bits - 1) });
        Ok(())
    }

    /// The granules of kernel, initramfs and device tree.
    fn measured(&self) -> [Option<Ipas>; 3] {
        let plan = &self.plan;
        [Some(plan.kernel), plan.initrd, Some(plan.tree)].map(|range| range.map(pages))
    }

    /// What of RAM is none of these.
    fn rest(&self, measured: &[Option<Ipas>; 3]) -> impl Iterator<Item = Ipas> {
        let mut sorted = *measured;
        sorted.sort_unstable();
        self.plan.ram.iter().flat_map(move |(start, end)| {
            let inside = sorted.into_iter().flatten().filter(move |part| start <= part.0 && part.1 <= end);
            // Between one and the next, and behind the last.
            let starts = core::iter::once(start).chain(inside.clone().map(|part| part.1));
            starts.zip(inside.map(|part| part.0).chain([end])).filter(|(start, end)| start < end)
        })
    }

    /// Kernel, initramfs and device tree.
    fn load(&self, granules: &mut Granules, scratch: u64) -> Result<(), Problem> {
        let plan = &self.plan;
        let measure = RmiDataFlags::MEASURE.bits();
        for (kind, range) in [("image", Some(plan.kernel)), ("initrd", plan.initrd)] {
            let Some(range) = range else { continue };
            let (start, size) = (range.start().get(), range.size());
            self.say(format_args!("@cloven measured {kind} {start:#x} {size} {measure}"));
            self.load_range(granules, scratch, range)?;
        }
        let (start, end) = (plan.tree.start().get(), plan.tree.end());
        for page in (start..end).step_by(GRANULE as usize) {
            self.tell_page(page, (end - page).min(GRANULE))?;
        }
        self.load_range(granules, scratch, plan.tree)
    }

    #[inline(never)]
    fn tell_page(&self, page: u64, size: u64) -> Result<(), Problem> {
        let mut bytes = [0; GRANULE as usize];
        let bytes = &mut bytes[..size as usize];
        self.read(page, 0, bytes)?;
        let measure = RmiDataFlags::MEASURE.bits();
        self.say(format_args!("@cloven measured data {page:#x} {measure} {}", Hex(bytes)));
        Ok(())
    }

    fn load_range(&self, granules: &mut Granules, scratch: u64, range: Range<Pa>) -> Result<(), Problem> {
        let rd = self.realm()?.rd;
        let measure = RmiDataFlags::MEASURE.bits();
        for (start, end) in blocks(pages(range)) {
            for page in (start..end).step_by(GRANULE as usize) {
                self.copy_aside(page, (range.end() - page).min(GRANULE), scratch)?;
                self.call(RmiCommand::GranuleDelegate, &[page])?;
                let inputs = [rd, page, page, scratch, measure];
                self.with_tables(granules, (page, PAGE), RmiCommand::DataCreate, &inputs)?;
            }
            self.counts.given.fetch_add((end - start) / GRANULE, Relaxed);
            if end - start == BLOCK {
                self.fold_around(granules, start)?;
            }
        }
        Ok(())
    }

    /// Copies the first bytes of a granule of the host's to another one, zeroes behind them.
    #[inline(never)]
    fn copy_aside(&self, from: u64, size: u64, to: u64) -> Result<(), Problem> {
        let mut page = [0; GRANULE as usize];
        self.read(from, 0, &mut page[..size as usize])?;
        self.write(to, 0, &page)
    }

    /// Makes a part of RAM RIPAS RAM before the realm runs: measured, entry by entry.
    fn init_ripas(&self, granules: &mut Granules, (start, end): Ipas) -> Result<(), Problem> {
        let rd = self.realm()?.rd;
        let mut at = start;
        while at < end {
            let [next, ..] =
                self.with_tables(granules, (at, PAGE), RmiCommand::RttInitRipas, &[rd, at, end])?;
            if next <= at {
                return Err(Problem::Place("RMI_RTT_INIT_RIPAS makes no progress at", at));
            }
            let level = self.entry(at, PAGE)?.level;
            self.say(format_args!("@cloven measured ripas {at:#x} {next:#x} {level}"));
            at = next;
        }
        Ok(())
    }

    #[inline(never)]
    fn add_rec(&self, granules: &mut Granules, scratch: u64, cpu: usize) -> Result<(), Problem> {
        let rd = self.realm()?.rd;
        let [count, ..] = self.call(RmiCommand::RecAuxCount, &[rd])?;
        let mut take = || {
            let granule = granules.take().ok_or(Problem::NoGranule)?;
            self.call(RmiCommand::GranuleDelegate, &[granule])?;
            Ok::<_, Problem>(granule)
        };
        let mut params = RmiRecParams::new_zeroed();
        let rec = take()?;
        params.num_aux = count;
        for aux in params.aux.iter_mut().take(count as usize) {
            *aux = take()?;
        }
        params.mpidr = RmiRecMpidr::from_index(cpu as u64);
        if cpu == 0 {
            params.flags = RmiRecCreateFlags::RUNNABLE;
            params.pc = self.plan.entry;
            params.gprs[0] = self.plan.tree.start().get();
        }
        self.write(scratch, 0, params.as_bytes())?;
        self.call(RmiCommand::RecCreate, &[rd, rec, scratch])?;
        if cpu == 0 {
            let [flags, pc, x0] = [params.flags.bits(), params.pc, params.gprs[0]];
            self.say(format_args!("@cloven measured rec {flags} {pc:#x} {x0:#x} 0 0 0 0 0 0 0"));
        }
        let run = granules.take().ok_or(Problem::NoGranule)?;
        // Nobody has wiped it.
        self.write(run, 0, &[0; GRANULE as usize])?;
        self.recs[cpu].pa.store(rec, Relaxed);
        self.recs[cpu].run.store(run, Relaxed);
        Ok(())
    }

    /// Copies out of a granule of the host's.
    pub(super) fn read(&self, granule: u64, offset: usize, into: &mut [u8]) -> Result<(), Problem> {
        self.monitor.lock().world.read(granule, offset, into).ok_or(Problem::NotTheHosts(granule))
    }

    /// Copies into a granule of the host's.
    pub(super) fn write(&self, granule: u64, offset: usize, from: &[u8]) -> Result<(), Problem> {
        self.monitor.lock().world.write(granule, offset, from).ok_or(Problem::NotTheHosts(granule))
    }
}
