//! Each command's failure conditions, in their order, and what it does.

use rmm_abi::v1_0::rmi::RmiCommand::*;
use rmm_abi::v1_0::rmi::RmiStatus;

use crate::fake::*;

#[test]
fn a_realm_lives_from_delegation_to_undelegation() {
    let fake = Fake::new();
    let rd = fake.realm();
    fake.rtts(rd, 0, 3);
    fake.ok(RttInitRipas, &[rd, 0, 2 * MIB]);
    let (data, src) = (fake.delegated(), fake.put(&0x1234_5678_u64));
    fake.ok(DataCreate, &[rd, data, 0x3000, src, 1]);
    assert_eq!(fake.get::<u64>(data), 0x1234_5678);
    let answer = fake.call(DataDestroy, &[rd, 0x3000]);
    assert_eq!(answer[..3], [0, data, 2 * MIB]);
    assert_eq!(fake.get::<u64>(data), 0);
    for level in [3, 2] {
        let answer = fake.ok(RttDestroy, &[rd, 0, level]);
        fake.ok(GranuleUndelegate, &[answer[1]]);
    }
    fake.ok(RealmDestroy, &[rd]);
    fake.ok(GranuleUndelegate, &[rd]);
    assert_eq!(fake.status(RealmDestroy, &[rd]), RmiStatus::ErrorInput);
}
