//! Which threads come first where processors are short.

use rustix::process::setpriority_process;

/// The most that a thread can be preferred without leaving the ordinary scheduler.
const NICEST: i32 = -20;

/// Has the calling thread come before others: it does little, and a thread of the guest waits for it.
/// A busy host otherwise lets it wait for whole turns of the guest's own processors. Where that is not
/// permitted, nothing changes.
pub(crate) fn come_first() {
    // `None` is the calling thread alone: threads of Linux each have a priority of their own.
    if let Err(error) = setpriority_process(None, NICEST) {
        tracing::debug!(%error, "threads that serve waiting guests cannot be preferred");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpriority_process;
    use std::thread;

    #[test]
    fn one_thread_is_preferred_and_the_others_are_not() {
        let before = getpriority_process(None).unwrap();
        let preferred = thread::spawn(|| {
            come_first();
            getpriority_process(None).unwrap()
        });
        let permitted = thread::spawn(|| setpriority_process(None, NICEST).is_ok());
        let expected = if permitted.join().unwrap() { NICEST } else { before };
        assert_eq!(preferred.join().unwrap(), expected);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
