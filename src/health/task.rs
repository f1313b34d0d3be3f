//! What the kernel says about one of our threads: whether it runs or sleeps, and in which call.

/// Most bytes read of each file of the kernel.
#[cfg(target_os = "linux")]
const FILE_BYTES_MAX: u64 = 4096;

/// Most frames of a kernel stack that are told.
#[cfg(target_os = "linux")]
const FRAMES_MAX: usize = 4;

/// The state, the place in the kernel, the system call and the stack of a thread, as far as they can
/// be read: `state=S wchan=futex_do_wait syscall=futex`. Empty where nothing can.
#[cfg(target_os = "linux")]
pub fn told(number: u32) -> String {
    use std::io::Read;
    let read = |name: &str| {
        let path = format!("/proc/self/task/{number}/{name}");
        let mut text = String::new();
        let file = std::fs::File::open(path).ok()?;
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    };
    let mut parts = Vec::new();
    let stat = read("stat");
    parts.extend(stat.as_deref().and_then(state).map(|state| format!("state={state}")));
    let place = read("wchan").filter(|place| !matches!(place.trim(), "" | "0"));
    parts.extend(place.map(|place| format!("wchan={}", place.trim())));
    parts
        .extend(read("syscall").and_then(|line| call(&line)).map(|call| format!("syscall={call}")));
    let stack = read("stack").map(|text| frames(&text)).filter(|frames| !frames.is_empty());
    parts.extend(stack.map(|frames| format!("stack={frames}")));
    parts.join(" ")
}

/// The same where the kernel says nothing.
#[cfg(not(target_os = "linux"))]
pub fn told(_number: u32) -> String {
    String::new()
}

/// The letter behind the name, which may hold blanks and brackets of its own.
#[cfg(target_os = "linux")]
fn state(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split(' ').next()
}

/// The calls in which a thread of ours can hang, by their names; others by their numbers.
#[cfg(target_os = "linux")]
fn call(line: &str) -> Option<String> {
    let number = line.split_whitespace().next()?;
    let Ok(number) = number.parse::<i64>() else { return Some(number.to_owned()) };
    let known = [
        (libc::SYS_futex, "futex"),
        (libc::SYS_read, "read"),
        (libc::SYS_write, "write"),
        (libc::SYS_pwrite64, "pwrite64"),
        (libc::SYS_fsync, "fsync"),
        (libc::SYS_fdatasync, "fdatasync"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_renameat2, "renameat2"),
        (libc::SYS_ppoll, "ppoll"),
        (libc::SYS_epoll_pwait, "epoll_pwait"),
        (libc::SYS_connect, "connect"),
        (libc::SYS_accept4, "accept4"),
        (libc::SYS_sendto, "sendto"),
        (libc::SYS_recvfrom, "recvfrom"),
        (libc::SYS_clock_nanosleep, "clock_nanosleep"),
        (libc::SYS_wait4, "wait4"),
        (libc::SYS_waitid, "waitid"),
    ];
    let name = known.iter().find(|(known, _)| *known == number).map(|(_, name)| *name);
    Some(name.map_or_else(|| number.to_string(), str::to_owned))
}

/// The innermost frames of `[<0>] futex_wait+0x…` lines.
#[cfg(target_os = "linux")]
fn frames(stack: &str) -> String {
    let name = |line: &str| {
        let frame = line.split_once("] ")?.1;
        Some(frame.split('+').next().unwrap_or(frame).to_owned())
    };
    stack.lines().filter_map(name).take(FRAMES_MAX).collect::<Vec<_>>().join("<")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_is_seen_waiting() {
        let (number, read) = std::sync::mpsc::sync_channel(1);
        let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let link = std::fs::read_link("/proc/thread-self").unwrap();
                let own = link.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap();
                number.send(own).unwrap();
                let _ = released.recv();
            });
            let number = read.recv().unwrap();
            while !told(number).contains("state=S") {
                std::thread::yield_now();
            }
            drop(release);
        });
        assert_eq!(told(u32::MAX), "");
    }

    #[test]
    fn what_the_kernel_writes_is_read_as_it_means() {
        assert_eq!(state("12 (a) b) R 1 2"), Some("R"));
        assert_eq!(state("12"), None);
        assert_eq!(call("running\n").as_deref(), Some("running"));
        let line = format!("{} 0x7f 0x80\n", libc::SYS_futex);
        assert_eq!(call(&line).as_deref(), Some("futex"));
        assert_eq!(call("9999 0x1\n").as_deref(), Some("9999"));
        let stack = "[<0>] futex_do_wait+0x42/0x60\n[<0>] __futex_wait+0x91/0x100\n";
        assert_eq!(frames(stack), "futex_do_wait<__futex_wait");
    }
}
