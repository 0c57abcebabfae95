//! Links that are cut after any number of bytes.

use super::proxy::Proxy;
use super::{Site, request, run, small, the_one_that_runs};
use std::sync::atomic::Ordering;
use sterna_core::receipt::{Ending, Receipt};
use sterna_engine::source::Move;
use sterna_vmm::synthetic::SyntheticGuest;

/// Cuts moves of a small guest all over, and closest around the commitment: each leaves exactly one guest that
/// runs, whole. `prepare` says how each is to move.
pub(crate) fn cut_anywhere(
    (a, b): (&Site, &Site),
    prepare: impl Fn(&SyntheticGuest, &mut Move),
) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    let mut move_through = |spoil: &dyn Fn(&Proxy)| {
        let guest = small();
        let proxy = Proxy::to(b.listener.address());
        spoil(&proxy);
        let epoch = receipts.len() as u64 + 1;
        let mut request = request(a, proxy.address, &guest, epoch);
        prepare(&guest, &mut request);
        let receipt = proxy.mended_during(|| run(a, &request, &guest));
        receipts.push(receipt.clone());
        (receipt, guest, proxy.passed())
    };
    let (undisturbed, _, total) = move_through(&|_| {});
    assert_eq!(undisturbed.ending, Ending::Moved, "{undisturbed:#?}");
    let mut moves_when_cut_after = |bytes: u64| {
        let cut = |proxy: &Proxy| proxy.rules.cut_after.store(bytes, Ordering::SeqCst);
        let (receipt, guest, _) = move_through(&cut);
        let what = format!("cut after {bytes} of about {total} bytes");
        let report = the_one_that_runs(&receipt, b, &guest, &what).check().unwrap();
        assert!(report.is_sound(), "{what}: {:?}", report.faults);
        receipt.ending == Ending::Moved
    };
    for twentieth in 0..20 {
        moves_when_cut_after(total * twentieth / 20);
    }
    // No two moves carry the same bytes, so the commitment's place is searched for, and looked at
    // most closely.
    let (mut undone, mut moved) = (0, total * 2);
    assert!(!moves_when_cut_after(undone), "nothing moves over a link that carries nothing");
    assert!(moves_when_cut_after(moved), "a cut after the last byte harms nothing");
    while moved - undone > 16 {
        let middle = undone.midpoint(moved);
        *(if moves_when_cut_after(middle) { &mut moved } else { &mut undone }) = middle;
    }
    for number in 0..30 {
        moves_when_cut_after((undone + 10 * 97).saturating_sub(number * 97));
    }
    receipts
}
