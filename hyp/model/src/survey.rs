//! What is explored of the right engine: each primitive on each machine, and each two of them at once on some.

use hyp::mapping::{El1And0, El2, Stage2, Tiny};

use crate::explore::Conviction;
use crate::faults::On;
use crate::primitive::{Ground, Trial, Tried, primitives};

/// What is explored of one primitive, or of one with another.
#[derive(Clone, Debug)]
pub struct Row {
    /// Their names.
    pub names: Vec<&'static str>,
    /// Different states, of all machines together.
    pub states: usize,
    /// Whether each was ever made, and not refused.
    pub made: Vec<bool>,
}

/// A verdict, and what was explored.
pub type Wrong = (Vec<&'static str>, Trial, Box<Conviction>);

/// Machines and grounds on which each two are tried at once.
pub const PAIRS: [(On, Trial); 6] = [
    (On::El2, Trial::new(3, Ground::Block)),
    (On::El2, Trial::new(0, Ground::Block)),
    (On::El1, Trial::new(3, Ground::Pages)),
    (On::Stage2, Trial::new(0, Ground::Block)),
    (On::Stage2, Trial::new(1, Ground::Pages)),
    (On::Stage2, Trial::new(2, Ground::Block)),
];

/// Each primitive beside a CPU that only translates: on every ground, at each level of FEAT_BBM, with and without the other features.
///
/// # Errors
/// The first verdict.
pub fn each(on: On) -> Result<Vec<Row>, Wrong> {
    match on {
        On::El2 => each_of::<El2>(),
        On::El1 => each_of::<El1And0>(),
        On::Stage2 => each_of::<Stage2>(),
    }
}

fn each_of<R: Tried>() -> Result<Vec<Row>, Wrong> {
    let mut rows = Vec::new();
    for primitive in &primitives::<R, Tiny>() {
        let mut row = Row { names: vec![primitive.name], states: 0, made: vec![false] };
        for bbm in 0..4 {
            for ground in Ground::ALL {
                for (more, once, quiesce) in
                    [(false, true, true), (true, true, true), (true, false, false), (false, false, true)]
                {
                    let trial = Trial { more, once, quiesce, ..Trial::new(bbm, ground) };
                    let (explored, made) = trial
                        .explore(&[primitive], None, |_, _| {})
                        .map_err(|conviction| (row.names.clone(), trial, conviction))?;
                    row.states += explored.states;
                    row.made[0] |= made[0] > 0;
                }
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Each two primitives at once, on one machine.
///
/// # Errors
/// The first verdict.
pub fn pairs(on: On, trial: Trial) -> Result<Vec<Row>, Wrong> {
    match on {
        On::El2 => pairs_of::<El2>(trial),
        On::El1 => pairs_of::<El1And0>(trial),
        On::Stage2 => pairs_of::<Stage2>(trial),
    }
}

fn pairs_of<R: Tried>(trial: Trial) -> Result<Vec<Row>, Wrong> {
    let all = primitives::<R, Tiny>();
    let mut rows = Vec::new();
    for (number, one) in all.iter().enumerate() {
        for two in &all[number..] {
            let names = vec![one.name, two.name];
            let (explored, made) = trial
                .explore(&[one, two], None, |_, _| {})
                .map_err(|conviction| (names.clone(), trial, conviction))?;
            rows.push(Row {
                names,
                states: explored.states,
                made: made.iter().map(|&made| made > 0).collect(),
            });
        }
    }
    Ok(rows)
}
