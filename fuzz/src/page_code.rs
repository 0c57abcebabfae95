//! Codes of pages, as a peer may make them up.

use crate::Verdict;
use sterna_page::PAGE_SIZE;
use sterna_page::coding::{Coder, Decoders, Encoders, code_bytes_max};

/// Pages of an input at most, so that none takes long.
const PAGES_MAX: u8 = 4;

/// The code of some pages: which coder's, how many pages, then the code. What is restored is coded and
/// restored again.
pub(crate) fn page_code(data: &[u8]) -> Verdict {
    let Some(([coder, count], code)) = data.split_first_chunk() else { return Verdict::Refused };
    let coder = Coder::ALL[usize::from(*coder) % Coder::ALL.len()];
    let count = usize::from(count % PAGES_MAX) + 1;
    let mut pages = vec![[0; PAGE_SIZE]; count];
    if Decoders::default().decode(coder, code, &mut pages).is_err() {
        return Verdict::Refused;
    }
    let mut own = vec![0; code_bytes_max(count)];
    let length = Encoders::default().encode(coder, &pages, &mut own);
    let mut again = vec![[0xa5; PAGE_SIZE]; count];
    let decoded = Decoders::default().decode(coder, &own[..length], &mut again);
    assert_eq!(decoded, Ok(()));
    assert!(again == pages, "{coder:?} does not restore {count} pages");
    Verdict::Accepted
}
