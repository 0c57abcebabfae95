//! What the kernel tells of a TCP connection: `getsockopt` with `TCP_INFO`.

use linux_raw_sys::net::tcp_info;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// For how long, all in all, this side had something to send and waited for the receiver to take what it has.
///
/// # Errors
/// If it is no TCP connection, or the kernel does not count this (before Linux 4.10).
pub fn held_up_by_receiver(socket: impl AsFd) -> io::Result<Duration> {
    let mut info = MaybeUninit::<tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, which is as many as `info` has.
    let told = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if told != 0 {
        return Err(io::Error::last_os_error());
    }
    if (length as usize) < offset_of!(tcp_info, tcpi_rwnd_limited) + size_of::<u64>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: it consists of integers, which were zero before the kernel wrote some of them.
    let info = unsafe { info.assume_init() };
    Ok(Duration::from_micros(info.tcpi_rwnd_limited))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    #[test]
    fn a_receiver_that_takes_nothing_holds_the_sender_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sending = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut receiving = listener.accept().unwrap().0;
        assert_eq!(held_up_by_receiver(&sending).unwrap(), Duration::ZERO);
        let bytes = vec![7; 64 << 20];
        thread::scope(|scope| {
            let late = Duration::from_millis(200);
            scope.spawn(move || {
                thread::sleep(late);
                receiving.read_to_end(&mut Vec::new()).unwrap();
            });
            sending.write_all(&bytes).unwrap();
            let held_up = held_up_by_receiver(&sending).unwrap();
            assert!(held_up > late / 2, "{held_up:?}");
            drop(sending);
        });
        assert!(held_up_by_receiver(File::open("/dev/null").unwrap()).is_err());
    }
}
