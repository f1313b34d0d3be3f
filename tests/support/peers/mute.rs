//! Listeners that say nothing: one takes connections and reads, one does not even take them.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Takes connections, reads what comes, says nothing, and notes when each peer closes.
pub struct Mute {
    addr: SocketAddr,
    taken: Arc<Mutex<Vec<Taken>>>,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Taken {
    /// When its first bytes came.
    pub spoke_at: Option<Instant>,
    /// When it closed.
    pub closed_at: Option<Instant>,
}

impl Mute {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let taken: Arc<Mutex<Vec<Taken>>> = Arc::default();
        let shared = Arc::clone(&taken);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let Ok(mut socket) = socket else { return };
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let index = {
                        let mut all = shared.lock().unwrap();
                        all.push(Taken { spoke_at: None, closed_at: None });
                        all.len() - 1
                    };
                    let mut piece = [0; 4096];
                    while socket.read(&mut piece).is_ok_and(|n| n > 0) {
                        shared.lock().unwrap()[index].spoke_at.get_or_insert(Instant::now());
                    }
                    shared.lock().unwrap()[index].closed_at = Some(Instant::now());
                });
            }
        });
        Mute { addr, taken }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The connections so far.
    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap().clone()
    }
}

/// Listens, but its queue of connections is full: whoever connects waits.
pub struct Full {
    addr: SocketAddr,
    _listener: socket2::Socket,
    _inside: Vec<TcpStream>,
}

impl Full {
    pub fn start() -> Self {
        use socket2::{Domain, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        let mut inside = Vec::new();
        for _ in 0..16 {
            match TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
                Ok(socket) => inside.push(socket),
                Err(_) => return Full { addr, _listener: listener, _inside: inside },
            }
        }
        panic!("the queue of connections never fills");
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}
