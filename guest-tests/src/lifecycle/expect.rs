//! What a linear map must consist of: the table of policies, by the levels of FEAT_BBM of those who were let in.
//!
//! Written from the table, not from the library's code for it.
//!
//! | policy | all let in have level 3, not all are known | all are known | somebody has less |
//! |---|---|---|---|
//! | keep | blocks | blocks | blocks |
//! | repaint | blocks | blocks | pages |
//! | pages | pages | blocks | pages |

use hyp::caps::policy::Policy;
use hyp::mapping::{Address, Pa, Range};

/// Whether a map has blocks, if the least level of those who were let in is `least`.
pub fn has_blocks(policy: Policy, least: u8, all_are_known: bool) -> bool {
    match policy {
        Policy::KeepBlocks => true,
        Policy::Repaint => least == 3,
        Policy::PagesFirst => least == 3 && all_are_known,
    }
}

/// Leaves of level 0 to 3 that cover `part`, the largest there are or pages.
pub fn leaves(part: Range<Pa>, blocks: bool) -> [u64; 4] {
    let mut leaves = [0; 4];
    let mut at = part.start().get();
    while at < part.end() {
        let fits = |size: u64| blocks && at.is_multiple_of(size) && at + size <= part.end();
        let (level, size) =
            [(1, 1 << 30), (2, 2 << 20)].into_iter().find(|(_, size)| fits(*size)).unwrap_or((3, 4096));
        leaves[level] += 1;
        at += size;
    }
    leaves
}
