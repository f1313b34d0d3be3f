//! Where the control socket is: a folder that only its owner enters, one socket in it, and a lock that
//! says whether its daemon lives.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::base::folder::{self, Claim, Unclaimed};

/// The folder in the state directory.
const FOLDER: &str = "control";
/// The socket in the folder.
pub const SOCKET_NAME: &str = "tidegate.sock";
/// The beginning of the names of tiny_http's own sockets.
const INNER_PREFIX: &str = "http-";

/// Longest path of a socket, in bytes. Linux takes 107, macOS 103.
const PATH_BYTES_MAX: usize = 100;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The path does not fit into a socket's address.
    #[error("{} has {} bytes, and a socket's path at most {PATH_BYTES_MAX}; set a shorter state.dir",
        .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Another daemon holds it.
    #[error("another tidegate runs with {}; stop it, or set another state.dir", .0.display())]
    Taken(PathBuf),
    /// Something else is in its place.
    #[error("{} is there and is no socket of ours; move it away", .0.display())]
    Foreign(PathBuf),
    /// The file system.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, #[source] io::Error),
}

/// Where the socket of a daemon with this state directory is.
pub fn socket_in(state_dir: &Path) -> PathBuf {
    state_dir.join(FOLDER).join(SOCKET_NAME)
}

/// The folder, locked, with the socket listening. Dropped, the socket is removed.
#[derive(Debug)]
pub struct Place {
    folder: PathBuf,
    path: PathBuf,
    listener: UnixListener,
    _claim: Claim,
    /// How many sockets of tiny_http's own there were.
    inner: u64,
}

impl Place {
    /// Takes the place in a state directory, which is made when it is not there.
    ///
    /// # Errors
    /// Why not; nothing of anybody else's was touched.
    pub fn take(state_dir: &Path) -> Result<Place, Refused> {
        let (folder, path) = (state_dir.join(FOLDER), socket_in(state_dir));
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(Refused::TooLong(path));
        }
        for made in [state_dir, &folder] {
            folder::private(made).map_err(|error| Refused::Io(made.to_owned(), error))?;
        }
        // Held for as long as the daemon lives, whatever ends it.
        let claim = Claim::take(&folder).map_err(|unclaimed| match unclaimed {
            Unclaimed::Held(_) => Refused::Taken(path.clone()),
            Unclaimed::Io(error) => Refused::Io(folder.clone(), error),
        })?;
        clear(&path)?;
        let at = |error| Refused::Io(path.clone(), error);
        let listener = UnixListener::bind(&path).map_err(at)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(at)?;
        listener.set_nonblocking(true).map_err(at)?;
        sweep(&folder);
        Ok(Place { folder, path, listener, _claim: claim, inner: 0 })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// A further listener in the folder, for tiny_http, and its path. tiny_http removes it.
    pub(super) fn inner(&mut self) -> io::Result<(UnixListener, PathBuf)> {
        self.inner += 1;
        let path = self.folder.join(format!("{INNER_PREFIX}{}", self.inner));
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok((listener, path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what a dead daemon left at the path of the socket; nothing else is removed.
fn clear(path: &Path) -> Result<(), Refused> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Refused::Io(path.to_owned(), error)),
    };
    if !found.file_type().is_socket() {
        return Err(Refused::Foreign(path.to_owned()));
    }
    // The lock is ours, but somebody may listen who knows of no lock.
    if UnixStream::connect(path).is_ok() {
        return Err(Refused::Taken(path.to_owned()));
    }
    fs::remove_file(path).map_err(|error| Refused::Io(path.to_owned(), error))
}

/// Removes tiny_http's sockets of a dead daemon.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(INNER_PREFIX);
        if ours && entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_folder_and_the_socket_are_their_owners_alone() {
        let state = tempfile::tempdir().unwrap();
        fs::set_permissions(state.path(), Permissions::from_mode(0o700)).unwrap();
        let folder = state.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        let place = Place::take(state.path()).unwrap();
        assert_eq!((mode(&folder), mode(place.path())), (0o700, 0o600));
        let path = place.path().to_owned();
        drop(place);
        assert!(!path.exists());
    }

    #[test]
    fn a_living_daemon_keeps_its_socket_and_a_dead_one_does_not() {
        let state = tempfile::tempdir().unwrap();
        let place = Place::take(state.path()).unwrap();
        assert!(matches!(Place::take(state.path()), Err(Refused::Taken(_))));
        assert!(place.path().exists());
        drop(place);
        // What a killed daemon leaves: a socket that nobody listens on, and those of tiny_http.
        let path = socket_in(state.path());
        drop(UnixListener::bind(&path).unwrap());
        let inner = path.with_file_name("http-7");
        drop(UnixListener::bind(&inner).unwrap());
        let place = Place::take(state.path()).unwrap();
        assert!(UnixStream::connect(place.path()).is_ok());
        assert!(!inner.exists());
    }

    #[test]
    fn what_is_not_ours_is_not_removed() {
        let state = tempfile::tempdir().unwrap();
        let path = socket_in(state.path());
        drop(Place::take(state.path()).unwrap());
        fs::write(&path, "notes").unwrap();
        assert!(matches!(Place::take(state.path()), Err(Refused::Foreign(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
        fs::remove_file(&path).unwrap();
        // Somebody who listens without the lock.
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(Place::take(state.path()), Err(Refused::Taken(_))));
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_path_that_fits_no_address_is_refused_with_its_remedy() {
        let state = tempfile::tempdir().unwrap();
        let deep = state.path().join("x".repeat(PATH_BYTES_MAX));
        let refused = Place::take(&deep).unwrap_err();
        assert!(matches!(refused, Refused::TooLong(_)));
        assert!(refused.to_string().contains("set a shorter state.dir"), "{refused}");
        assert!(!deep.exists(), "nothing is made for nothing");
    }
}
