//! Every schedule of each primitive, and of each two.

use hyp::mapping::{El2, Stage2, Tiny};
use hyp_model::primitive::{Ground, Trial, primitives};

#[test]
fn first() {
    for ground in Ground::ALL {
        for primitive in primitives::<El2, Tiny>() {
            let result = Trial::new(3, ground).explore(&[&primitive], None, |_, _| {});
            println!(
                "EL2 {ground:?} {}: {}",
                primitive.name,
                result.map_or_else(|e| format!("{e:?}"), |o| format!("{o:?}"))
            );
        }
        for primitive in primitives::<Stage2, Tiny>() {
            let result = Trial::new(0, ground).explore(&[&primitive], None, |_, _| {});
            println!(
                "S2 {ground:?} {}: {}",
                primitive.name,
                result.map_or_else(|e| format!("{e:?}"), |o| format!("{o:?}"))
            );
        }
    }
}
