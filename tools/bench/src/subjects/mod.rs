//! Who is measured. A new subject is one file here that implements [`Peer`](crate::Peer) and [`Joins`](crate::peer::Joins), and its line
//! in `ALL`.

mod aarch64_paging;
pub mod hyp;
mod page_table_generic;
mod page_table_multiarch;

use crate::{bound::Raw, measure::Subject};

/// All subjects in the order of the columns; the first is the bound.
pub const ALL: &[Subject] = &[
    Subject::of::<Raw>(),
    Subject::of::<hyp::Hyp>(),
    Subject::of::<hyp::HypRuns>(),
    Subject::of::<aarch64_paging::Paging>(),
    Subject::of::<page_table_multiarch::Multiarch>(),
    Subject::of::<page_table_generic::Generic>(),
];
