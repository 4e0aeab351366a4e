//! What the realm says to its host, by RSI_HOST_CALL.

use hyp::realm::{Rsi, RsiHostCall};
use smccc::Call;

/// The immediate of the calls that the host knows.
const IMMEDIATE: u16 = 0xc10e;
/// Looks at a shared range and complements it: its protected address, bytes, seed. 0, or the number of the first wrong doubleword plus 1.
pub const EXCHANGE: u64 = 1;
/// What the host used since it was asked last on this CPU: 0, ticks of its own code, ticks in RMI calls, RMI calls.
pub const TICKS: u64 = 2;
/// No operation.
pub const NO_OPERATION: u64 = u64::MAX;

/// What the host has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks {
    /// Ticks of its own code.
    pub host: u64,
    /// Ticks of its calls to the monitor.
    pub rmi: u64,
    /// Those calls.
    pub calls: u64,
}

/// Calls the host: what it answers, or nothing if the monitor would not have it.
pub fn call<C: Call>(rsi: &Rsi<C>, operation: u64, args: [u64; 3]) -> Option<[u64; 4]> {
    let mut call = RsiHostCall::zeroed();
    call.imm = IMMEDIATE;
    let [a, b, c] = args;
    call.gprs[..4].copy_from_slice(&[operation, a, b, c]);
    rsi.host_call(&mut call).ok()?;
    Some(core::array::from_fn(|register| call.gprs[register]))
}

/// What the host has used since the last call of this.
pub fn ticks<C: Call>(rsi: &Rsi<C>) -> Ticks {
    let [_, host, rmi, calls] = call(rsi, TICKS, [0; 3]).unwrap_or_default();
    Ticks { host, rmi, calls }
}
