//! A machine for tests: real memory for granules and tables, maps of host, EL2 and realms over it, CPUs that run what a script says.
//!
//! Invariant: what host, hypervisor and realms have is what their maps say; the test reaches memory beside them, as a debugger would.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use hyp::el2::guests::Advertised;
use hyp::el2::inject::EntryFeatures;
use hyp::el2::vcpu::{Exit, IdView, Running, Vcpu};
use hyp::mapping::mmu::Linear;
use hyp::mapping::{
    Address, Attributes, Barrier, Capabilities, El2, GRANULE, Geometry, Leaves, Map, Mmu, NoQuiesce, Options,
    Pa, Pool, Range, Scope, Slot, Stage2, TablePool, Tlbi,
};
use hyp::owner::{HostPage, HypervisorPage, Memory, Ownership};
use hyp::stage2::{CpuLimits, Registers, Supplied, host_map};
use rmm_abi::v1_0::rmi::{
    RmiCommand, RmiRealmParams, RmiRecCreateFlags, RmiRecMpidr, RmiRecParams, RmiStatus,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::by_stage2::{ByStage2, Cpus};
use crate::monitor::Monitor;
use crate::rtt::Rtte;
use crate::trace::{Moment, Trace};
use crate::world::{Features, World};

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// Where the machine's RAM begins.
pub const RAM: u64 = 0x4000_0000;
/// The first of it is the hypervisor's: tables of the host's map and the EL2 map.
pub const OWN: u64 = 16 * MIB;
/// The first granule of the host's.
pub const HOST: u64 = RAM + OWN;
/// A page that is no RAM.
pub const DEVICE: u64 = 0x0900_0000;

pub const LIMITS: CpuLimits = CpuLimits { pa_range: 5, vmid_16_bits: true };
pub const FEATURES: Features =
    Features { limits: LIMITS, list_registers: 4, priority_bits: 5, intid_bits: 16 };
/// What CPUs can do at first.
pub const CAPABILITIES: Capabilities =
    Capabilities::LEAST.union(Capabilities::BBM).union(Capabilities::TLB_RANGE);

/// What all maps have in common, and what was done to them.
pub struct Shared {
    pub linear: Linear,
    pub pool: Pool<Linear>,
    slots: [Slot; 4],
    /// Invalidations of realms' maps, with their VMIDs.
    pub tlbis: Mutex<Vec<(u16, Tlbi)>>,
    pub barriers: AtomicUsize,
}

/// The MMU of the host and of EL2.
pub type OwnMmu = &'static Shared;

// SAFETY: pool and tables are of the same memory; no CPU translates through it.
unsafe impl Mmu for Shared {
    type Tables = Linear;
    type Pool = Pool<Linear>;
    type Quiesce = NoQuiesce;
    fn tables(&self) -> &Linear {
        &self.linear
    }
    fn pool(&self) -> &Pool<Linear> {
        &self.pool
    }
    fn quiesce(&self) -> &NoQuiesce {
        &NoQuiesce
    }
    fn slots(&self) -> &[Slot] {
        &self.slots
    }
    fn tlbi(&self, _: Tlbi, _: Scope, _: u64) {}
    fn barrier(&self, _: Barrier, _: Scope) {}
    fn relax(&self) {
        std::thread::yield_now();
    }
}

/// The MMU of a realm.
pub struct RealmMmu {
    shared: OwnMmu,
    vmid: u16,
}

// SAFETY: as for `Shared`; the tables are those of the host.
unsafe impl Mmu for RealmMmu {
    type Tables = Linear;
    type Pool = Supplied;
    type Quiesce = NoQuiesce;
    fn tables(&self) -> &Linear {
        &self.shared.linear
    }
    fn pool(&self) -> &Supplied {
        &Supplied
    }
    fn quiesce(&self) -> &NoQuiesce {
        &NoQuiesce
    }
    fn slots(&self) -> &[Slot] {
        &self.shared.slots
    }
    fn tlbi(&self, operation: Tlbi, _: Scope, _: u64) {
        self.shared.tlbis.lock().unwrap().push((self.vmid, operation));
    }
    fn barrier(&self, _: Barrier, _: Scope) {
        self.shared.barriers.fetch_add(1, SeqCst);
    }
    fn relax(&self) {
        std::thread::yield_now();
    }
}

/// What a vCPU does until it stops.
pub type Step = Box<dyn FnOnce(&mut Vcpu, &Registers) -> Exit + Send>;

/// CPUs that do what they are told.
pub struct FakeCpus {
    pub shared: OwnMmu,
    /// What CPUs can do by now: bits of [`Capabilities`].
    pub capabilities: AtomicU32,
    /// What the machine has.
    pub features: Mutex<Features>,
    /// What comes next.
    pub script: Mutex<VecDeque<Step>>,
    /// Whether the CPU that calls can run a realm.
    pub can_run: AtomicBool,
    /// How often instructions were forgotten.
    pub forgotten: AtomicUsize,
    /// How often a vCPU ran.
    pub runs: AtomicUsize,
    /// Who calls, and when.
    pub moment: Mutex<Moment>,
    /// Where realms that have never asked RSI_VERSION were told that there is nothing.
    pub lost: Mutex<Vec<u64>>,
    /// How often something was done that nobody waits for.
    pub stood: AtomicUsize,
    /// What guests are shown.
    pub advertised: Mutex<Advertised>,
    view: IdView,
}

impl Cpus for FakeCpus {
    type Mmu = RealmMmu;

    fn features(&self) -> Features {
        *self.features.lock().unwrap()
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::from_bits_retain(self.capabilities.load(SeqCst))
    }
    fn id_view(&self) -> &IdView {
        &self.view
    }
    fn advertised(&self) -> Advertised {
        *self.advertised.lock().unwrap()
    }
    fn entry_features(&self) -> EntryFeatures {
        EntryFeatures::default()
    }
    fn mmu(&self, registers: &Registers) -> RealmMmu {
        RealmMmu { shared: self.shared, vmid: (registers.vttbr >> 48) as u16 }
    }
    fn joins(&self) -> Option<bool> {
        Some(true)
    }
    fn can_run(&self) -> bool {
        self.can_run.load(SeqCst)
    }
    fn run(
        &self,
        vcpu: &mut Vcpu,
        registers: &Registers,
        _: bool,
        answer: &mut dyn FnMut(&mut Running, &Exit) -> bool,
    ) -> Exit {
        self.runs.fetch_add(1, SeqCst);
        loop {
            let step = self.script.lock().unwrap().pop_front().expect("the script has ended");
            let exit = step(vcpu, registers);
            let mut running = Running { x: vcpu.x, pc: vcpu.pc, pstate: vcpu.pstate };
            let goes_on = matches!(exit, Exit::Synchronous { .. }) && answer(&mut running, &exit);
            (vcpu.x, vcpu.pc, vcpu.pstate) = (running.x, running.pc, running.pstate);
            if !goes_on {
                return exit;
            }
        }
    }
    fn forget_instructions(&self) {
        self.forgotten.fetch_add(1, SeqCst);
    }
    fn is_lost(&self, ipa: u64) {
        self.lost.lock().unwrap().push(ipa);
    }
    fn wait(&self) {
        std::thread::yield_now();
    }
    fn stand<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stood.fetch_add(1, SeqCst);
        work()
    }
    fn moment(&self) -> Moment {
        *self.moment.lock().unwrap()
    }
}

pub type FakeWorld = ByStage2<'static, OwnMmu, OwnMmu, FakeCpus>;

/// A machine with a monitor.
pub struct Fake {
    pub monitor: Monitor<FakeWorld>,
    pub host: &'static Map<Stage2, OwnMmu>,
    pub el2: &'static Map<El2, OwnMmu>,
    pub shared: OwnMmu,
    offset: u64,
    /// The end of RAM.
    pub end: u64,
    next: AtomicU64,
}

/// The registers of a call: X0 to X17.
pub type Answer = [u64; 18];

/// The status in X0.
pub fn status(answer: &Answer) -> RmiStatus {
    RmiStatus::from_bits(answer[0]).expect("a status of RMI")
}

impl Fake {
    /// With 64 MiB of RAM.
    pub fn new() -> Self {
        Self::with_ram(64 * MIB)
    }

    /// With so much RAM, most of which should not be touched if it is large.
    pub fn with_ram(size: u64) -> Self {
        Self::traced(size, Trace::NOTHING)
    }

    /// With so much RAM, and what is called is told.
    pub fn traced(size: u64, trace: Trace) -> Self {
        // Of no large alignment, as that would be written to; and a granule more.
        let memory: &'static mut [u8] = vec![0; (size + GRANULE) as usize].leak();
        let start = (memory.as_mut_ptr().expose_provenance() as u64).next_multiple_of(GRANULE);
        let offset = start.wrapping_sub(RAM);
        let linear = Linear::new(offset);
        let pool = Pool::new(linear);
        // SAFETY: it is nobody else's.
        unsafe { pool.refill(Range::new(RAM, OWN).unwrap()).unwrap() };
        let slots = Default::default();
        let shared: OwnMmu = Box::leak(Box::new(Shared {
            linear,
            pool,
            slots,
            tlbis: Mutex::default(),
            barriers: AtomicUsize::new(0),
        }));
        let (ram, own) = (Range::new(RAM, size).unwrap(), Range::new(RAM, OWN).unwrap());
        let options = Options::new(CAPABILITIES);
        let host = host_map(shared, options, LIMITS, &[ram], RAM + size, &[own]).unwrap();
        let mut el2 = Map::new(shared, Geometry::stage1(48).unwrap(), options).unwrap();
        let data = Attributes::<El2>::DATA;
        el2.get_mut()
            .map(Range::new(HOST, size - OWN).unwrap(), Pa::new(HOST).unwrap(), data, Leaves::LARGEST)
            .unwrap();
        let (host, el2) = (&*Box::leak(Box::new(host)), &*Box::leak(Box::new(el2)));
        // SAFETY: the arena is at that offset, and nobody keeps a reference into it.
        let memory = unsafe { Memory::new(offset) };
        let parties = Box::leak(Box::new(Ownership::new(host, el2, memory)));
        let cpus = FakeCpus {
            shared,
            capabilities: AtomicU32::new(CAPABILITIES.bits()),
            features: Mutex::new(FEATURES),
            script: Mutex::default(),
            can_run: AtomicBool::new(true),
            forgotten: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            moment: Mutex::default(),
            lost: Mutex::default(),
            stood: AtomicUsize::new(0),
            advertised: Mutex::default(),
            view: IdView::of(|_, _| 0),
        };
        Self {
            monitor: Monitor::traced(ByStage2::new(parties, memory, cpus), trace),
            host,
            el2,
            shared,
            offset,
            end: RAM + size,
            next: AtomicU64::new(HOST),
        }
    }

    /// The CPUs.
    pub fn cpus(&self) -> &FakeCpus {
        self.monitor.world.cpus()
    }

    /// The next runs of a vCPU do this.
    pub fn script(&self, step: impl FnOnce(&mut Vcpu, &Registers) -> Exit + Send + 'static) {
        self.cpus().script.lock().unwrap().push_back(Box::new(step));
    }

    /// Makes a call; arguments from X1 on, all other registers not zero.
    pub fn call(&self, command: RmiCommand, arguments: &[u64]) -> Answer {
        let mut x = [0x5a5a; 18];
        x[0] = command.fid().into();
        x[1..=arguments.len()].copy_from_slice(arguments);
        assert!(self.monitor.call(&mut x), "{} is a call of RMI", command.name());
        let zero = 1 + command.outputs()..17;
        assert!(x[zero].iter().all(|&x| x == 0), "{}: {x:x?}", command.name());
        assert_eq!(x[17], 0x5a5a);
        x
    }

    /// Makes a call and gives its status.
    pub fn status(&self, command: RmiCommand, arguments: &[u64]) -> RmiStatus {
        status(&self.call(command, arguments))
    }

    /// Makes a call that succeeds.
    #[track_caller]
    pub fn ok(&self, command: RmiCommand, arguments: &[u64]) -> Answer {
        let answer = self.call(command, arguments);
        assert_eq!(status(&answer), RmiStatus::Success, "{} {arguments:x?}", command.name());
        answer
    }

    /// `count` granules of the host's that nobody was given yet, aligned to `align` bytes.
    pub fn granules(&self, count: u64, align: u64) -> u64 {
        let size = count * GRANULE;
        let start = self.next.fetch_update(SeqCst, SeqCst, |next| Some(next.next_multiple_of(align) + size));
        let start = start.unwrap().next_multiple_of(align);
        assert!(start + size <= self.end, "the machine has too little memory for the test");
        start
    }

    /// A granule of the host's that nobody was given yet.
    pub fn granule(&self) -> u64 {
        self.granules(1, GRANULE)
    }

    /// A granule that is delegated.
    pub fn delegated(&self) -> u64 {
        let granule = self.granule();
        self.ok(RmiCommand::GranuleDelegate, &[granule]);
        granule
    }

    /// What a granule is.
    pub fn is(&self, granule: u64) -> HostPage {
        self.monitor.world.granule(granule)
    }

    /// Does something while the maps of host and EL2 get no table.
    pub fn without_tables<T>(&self, work: impl FnOnce() -> T) -> T {
        let pool = &self.shared.pool;
        let free = pool.free();
        pool.reserve(free).unwrap();
        let done = work();
        // SAFETY: as many as were reserved above.
        unsafe { pool.cancel(free) };
        done
    }

    /// Bytes of memory, whosever it is.
    pub fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        assert!(RAM <= at && at + N as u64 <= self.end);
        let from = std::ptr::with_exposed_provenance::<[u8; N]>(at.wrapping_add(self.offset) as usize);
        // SAFETY: in the arena.
        unsafe { from.read_unaligned() }
    }

    /// Stores to memory, whosever it is.
    pub fn store(&self, at: u64, bytes: &[u8]) {
        assert!(RAM <= at && at + bytes.len() as u64 <= self.end);
        let to = std::ptr::with_exposed_provenance_mut::<u8>(at.wrapping_add(self.offset) as usize);
        // SAFETY: in the arena.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// A value in memory.
    pub fn get<T: FromBytes>(&self, at: u64) -> T {
        let mut bytes = vec![0; size_of::<T>()];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = self.bytes::<1>(at + i as u64)[0];
        }
        T::read_from_bytes(&bytes).unwrap()
    }

    /// Puts a value into a new granule of the host's, and says where that is.
    pub fn put<T: IntoBytes + Immutable>(&self, value: &T) -> u64 {
        let granule = self.granule();
        self.store(granule, value.as_bytes());
        granule
    }

    /// Parameters of a realm of `s2sz` bits, with new roots, delegated.
    pub fn params(&self, s2sz: u8) -> RmiRealmParams {
        let roots = if s2sz < 44 { 1 << s2sz.saturating_sub(39) } else { 1 };
        let base = self.granules(roots, roots * GRANULE);
        for root in 0..roots {
            self.ok(RmiCommand::GranuleDelegate, &[base + root * GRANULE]);
        }
        self.params_at(s2sz, base)
    }

    /// Parameters of a realm of `s2sz` bits with its roots from `base` on.
    pub fn params_at(&self, s2sz: u8, base: u64) -> RmiRealmParams {
        let (level, roots) = if s2sz < 44 { (1, 1u32 << s2sz.saturating_sub(39)) } else { (0, 1) };
        let mut params = RmiRealmParams::zeroed();
        (params.s2sz, params.num_bps, params.num_wps) = (s2sz, 1, 1);
        (params.vmid, params.rtt_base) = ((base >> 12) as u16, base);
        (params.rtt_level_start, params.rtt_num_start) = (level, roots);
        params
    }

    /// A new realm of 40 bits: the PA of its descriptor.
    pub fn realm(&self) -> u64 {
        self.realm_of(&self.params(40))
    }

    /// A new realm.
    pub fn realm_of(&self, params: &RmiRealmParams) -> u64 {
        let rd = self.delegated();
        self.ok(RmiCommand::RealmCreate, &[rd, self.put(params)]);
        rd
    }

    /// A new REC of a realm: the next one.
    pub fn rec(&self, rd: u64) -> u64 {
        let rec = self.delegated();
        self.rec_at(rd, rec, self.delegated(), self.granule());
        rec
    }

    /// A new REC at two delegated granules, its parameters at one of the host's.
    pub fn rec_at(&self, rd: u64, rec: u64, aux: u64, at: u64) {
        let mut params = RmiRecParams::zeroed();
        let index = self.monitor.lock().realm(rd).expect("a realm").rec_index.get();
        (params.flags, params.mpidr) = (RmiRecCreateFlags::RUNNABLE, RmiRecMpidr::from_index(index));
        (params.num_aux, params.aux[0]) = (1, aux);
        self.store(at, params.as_bytes());
        self.ok(RmiCommand::RecCreate, &[rd, rec, at]);
    }

    /// A granule of data that a realm gets at a page that has an RTT, with what RIPAS that has.
    pub fn data(&self, rd: u64, ipa: u64) -> u64 {
        let data = self.delegated();
        self.ok(RmiCommand::DataCreateUnknown, &[rd, data, ipa]);
        data
    }

    /// Gives a realm 2 MiB of data as a block, RAM.
    pub fn block(&self, rd: u64, ipa: u64) -> u64 {
        self.rtts(rd, ipa, 3);
        self.ok(RmiCommand::RttInitRipas, &[rd, ipa, ipa + 2 * MIB]);
        let start = self.granules(512, 2 * MIB);
        for offset in (0..2 * MIB).step_by(GRANULE as usize) {
            self.ok(RmiCommand::GranuleDelegate, &[start + offset]);
            self.ok(RmiCommand::DataCreateUnknown, &[rd, start + offset, ipa + offset]);
        }
        self.ok(RmiCommand::RttFold, &[rd, ipa, 3]);
        start
    }

    /// Where a walk to `level` ends in a realm's tables.
    pub fn rtte(&self, rd: u64, ipa: u64, level: i64) -> (i64, Rtte) {
        let lock = self.monitor.lock();
        let walk = lock.realm(rd).expect("a realm").walk(ipa, level);
        (walk.level, walk.rtte)
    }

    /// What host, EL2 and all realms have, where: equal if nothing differs but the sizes of entries of host and EL2.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let all = self.end.next_multiple_of(GIB);
        let mut last = None;
        let _ = self.host.cpu(0).unwrap().read().walk(Range::new(0, all).unwrap(), |visited| {
            let is = Some(HostPage::of(&visited));
            if last != is {
                (0, visited.start, format!("{is:?}")).hash(&mut hasher);
                last = is;
            }
            ControlFlow::<()>::Continue(())
        });
        let mut last = None;
        let _ = self.el2.cpu(0).unwrap().read().walk(Range::new(0, all).unwrap(), |visited| {
            let is = Some(HypervisorPage::of(&visited));
            if last != is {
                (1, visited.start, format!("{is:?}")).hash(&mut hasher);
                last = is;
            }
            ControlFlow::<()>::Continue(())
        });
        let lock = self.monitor.lock();
        for rd in lock.state.realms.iter().flatten() {
            let realm = lock.realm(rd.get()).expect("in the list");
            let whole = Range::new(0, 1 << realm.ipa_width).unwrap();
            let _ = realm.write().walk(whole, |visited| {
                (2, visited.start, visited.level, visited.entry.encode(visited.level)).hash(&mut hasher);
                ControlFlow::<()>::Continue(())
            });
            (*realm.measurements.borrow(), format!("{:?}", realm.state)).hash(&mut hasher);
            (realm.rec_index.get(), realm.num_recs.get(), realm.rpv, realm.vmid).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Gives a realm RTTs down to `level` for `ipa`.
    pub fn rtts(&self, rd: u64, ipa: u64, level: i64) {
        for level in 2..=level {
            let at = ipa & !(rmm_abi::v1_0::entry_size(level - 1).unwrap() - 1);
            let rtt = self.delegated();
            if let RmiStatus::ErrorRtt(_) = self.status(RmiCommand::RttCreate, &[rd, rtt, at, level as u64]) {
                self.ok(RmiCommand::GranuleUndelegate, &[rtt]);
            }
        }
    }
}
