//! The processes of one run: the first leads it, the others compute beside it, each with a device of its own.
//!
//! The leader claims, reads, writes and publishes as the only process of any other run does. It starts the others with its own
//! command line, tells them its recipe and where its inputs lie, and they have nothing to do with the store. Every two
//! processes are connected. Whichever of them goes, the others see its connections close: a follower then ends, the leader's
//! run fails.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wmtp_recipe::Recipe;

use crate::life::Session;
use crate::{JobError, Run};

/// Set by the leader alone: the number of a process among those of its run.
const RANK_VARIABLE: &str = "WMTP_RANK";

const UNSET: &str =
    "the first process of a run sets WMTP_RANK for the others: unset it, and give --ranks";

/// This program, also where its file has been replaced meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// How long another process may take to answer while the crew comes together, and to end when it is over.
const PATIENCE: Duration = Duration::from_secs(30);

/// A longer message is none of ours.
const MAX_MESSAGE: usize = 1 << 30;

/// What a process of a run, the first or another, learns from.
pub trait Inputs {
    /// The resolved recipe.
    fn recipe(&self) -> &Recipe;

    /// The files of an input: a read-only folder, every file verified.
    ///
    /// # Errors
    /// An input that the plan did not register, or that cannot be fetched.
    fn input(&self, role: &str) -> Result<PathBuf, JobError>;
}

impl Inputs for Run {
    fn recipe(&self) -> &Recipe {
        Self::recipe(self)
    }

    fn input(&self, role: &str) -> Result<PathBuf, JobError> {
        Self::input(self, role)
    }
}

/// One process's connections to the others.
#[derive(Debug)]
pub struct Links {
    /// Its own number, from 0; the leader's is 0.
    pub rank: usize,
    /// The connection to every process; `None` at its own number.
    pub peers: Vec<Option<UnixStream>>,
}

impl Links {
    /// Those of the only process of a run.
    pub fn alone() -> Self {
        Self {
            rank: 0,
            peers: vec![None],
        }
    }

    /// The links of so many ranks that are threads of this process.
    ///
    /// # Errors
    /// The system's.
    pub fn among_threads(world: usize) -> io::Result<Vec<Self>> {
        let mut links: Vec<Self> = (0..world)
            .map(|rank| Self {
                rank,
                peers: (0..world).map(|_| None).collect(),
            })
            .collect();
        for one in 0..world {
            for other in one + 1..world {
                let (here, there) = UnixStream::pair()?;
                links[one].peers[other] = Some(here);
                links[other].peers[one] = Some(there);
            }
        }
        Ok(links)
    }
}

/// Sends a message; [`receive`] takes it whole.
///
/// # Errors
/// The connection's.
pub fn send(mut to: &UnixStream, message: &[u8]) -> io::Result<()> {
    to.write_all(&(message.len() as u64).to_le_bytes())?;
    to.write_all(message)
}

/// Waits for the next message; none when the other side has gone.
///
/// # Errors
/// The connection's.
pub fn receive(mut from: &UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 8];
    match from.read_exact(&mut length) {
        // A side that went without having read all is a reset.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            return Ok(None);
        }
        done => done?,
    }
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message)?;
    Ok(Some(message))
}

/// What a follower says first: where the others reach it.
#[derive(Serialize, Deserialize)]
struct Hello {
    listens_at: String,
}

/// What the leader answers.
#[derive(Serialize, Deserialize)]
struct Assignment {
    /// Where each follower listens, by rank.
    listens_at: BTreeMap<usize, String>,
    /// What proves to one follower that another is of this crew: names of sockets are there for all to read.
    secret: String,
    /// The resolved recipe as text. Its file may be another by now, or a pipe that is empty.
    recipe: String,
    inputs: BTreeMap<String, PathBuf>,
}

/// The first words between two followers.
#[derive(Serialize, Deserialize)]
struct Greeting {
    secret: String,
    rank: usize,
}

/// The followers of a run. They end with this value.
#[derive(Debug)]
pub struct Crew {
    followers: Vec<Child>,
    lines: Vec<UnixStream>,
}

impl Crew {
    /// Starts the other processes of a run of `world` in all, each with so many threads, and connects all of them.
    pub(crate) fn start(
        run: &Run,
        world: usize,
        threads: usize,
    ) -> Result<(Self, Links), JobError> {
        let mut crew = Self {
            followers: Vec::new(),
            lines: Vec::new(),
        };
        let mut peers = vec![None];
        for rank in 1..world {
            let (line, theirs) = UnixStream::pair()?;
            let follower = Command::new(THIS_PROGRAM)
                .args(std::env::args_os().skip(1))
                .env(RANK_VARIABLE, rank.to_string())
                .env("RAYON_NUM_THREADS", threads.to_string())
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::null())
                // A terminal's Ctrl-C is for the leader, which has the others save their part.
                .process_group(0)
                .spawn()
                .map_err(|error| {
                    JobError::from(error).context(format!("starting rank {rank} of {world}"))
                })?;
            crew.followers.push(follower);
            crew.lines.push(line.try_clone()?);
            peers.push(Some(line));
        }
        let links = Links { rank: 0, peers };
        crew.assign(run)?;
        Ok((crew, links))
    }

    fn assign(&self, run: &Run) -> Result<(), JobError> {
        let mut assignment = Assignment {
            listens_at: BTreeMap::new(),
            secret: random_word()?,
            recipe: run.recipe().to_json().to_string(),
            inputs: BTreeMap::new(),
        };
        for role in run.inputs.keys() {
            let folder = std::path::absolute(run.input(role)?)?;
            assignment.inputs.insert(role.clone(), folder);
        }
        for (rank, line) in (1..).zip(&self.lines) {
            let Hello { listens_at } = hear(line, rank)?;
            assignment.listens_at.insert(rank, listens_at);
        }
        for (rank, line) in (1..).zip(&self.lines) {
            say(line, rank, &assignment)?;
        }
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for line in &self.lines {
            // One that is closed already is what this is for.
            let _ = line.shutdown(Shutdown::Both);
        }
        let asked = Instant::now();
        for follower in &mut self.followers {
            while matches!(follower.try_wait(), Ok(None)) {
                if asked.elapsed() > PATIENCE {
                    // It may have ended between the two calls.
                    let _ = follower.kill();
                    let _ = follower.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// A process of a run that another leads.
#[derive(Debug)]
pub struct Follower {
    recipe: Recipe,
    inputs: BTreeMap<String, PathBuf>,
    links: Links,
}

impl Inputs for Follower {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn input(&self, role: &str) -> Result<PathBuf, JobError> {
        let folder = self.inputs.get(role).cloned();
        folder.ok_or_else(|| JobError::internal(format!("the plan registered no input {role:?}")))
    }
}

impl Follower {
    /// Answers the leader and connects to the others.
    pub(crate) fn join(rank: usize, session: &Session) -> Result<Self, JobError> {
        // The leader says when to stop; a signal to all processes of a machine must not take the state of this one along.
        session.at_work.store(true, Ordering::SeqCst);
        let line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let listens_at = format!("wmtp-{}", random_word()?);
        let listener = UnixListener::bind_addr(&address(&listens_at)?)?;
        say(&line, 0, &Hello { listens_at }).map_err(|error| error.hint(UNSET))?;
        let assignment: Assignment = hear(&line, 0)?;
        let mut peers = vec![Some(line)];
        peers.extend(assignment.listens_at.keys().map(|_| None));
        for (&other, name) in assignment.listens_at.range(..rank) {
            let stream = UnixStream::connect_addr(&address(name)?)?;
            let secret = assignment.secret.clone();
            say(&stream, other, &Greeting { secret, rank })?;
            peers[other] = Some(stream);
        }
        let later = &mut peers[rank + 1..];
        meet(&listener, rank + 1, later, &assignment.secret, PATIENCE)?;
        Ok(Self {
            recipe: Recipe::from_resolved(&assignment.recipe)?,
            inputs: assignment.inputs,
            links: Links { rank, peers },
        })
    }

    /// Takes the connections out.
    pub fn take_links(&mut self) -> Links {
        std::mem::replace(&mut self.links, Links::alone())
    }
}

/// Refuses to be one of several processes.
pub(crate) fn refuse_to_follow() -> Result<(), JobError> {
    match rank()? {
        None => Ok(()),
        Some(rank) => Err(JobError::usage(format!("{RANK_VARIABLE} is {rank}")).hint(UNSET)),
    }
}

/// The number of this process, where another leads its run.
pub(crate) fn rank() -> Result<Option<usize>, JobError> {
    let Some(text) = std::env::var_os(RANK_VARIABLE) else {
        return Ok(None);
    };
    let rank = text.to_str().and_then(|text| text.parse().ok());
    rank.map(Some).ok_or_else(|| {
        JobError::usage(format!("{RANK_VARIABLE} is {}", text.display())).hint(UNSET)
    })
}

/// Waits until everyone of this crew from the rank `first` on has come.
fn meet(
    listener: &UnixListener,
    first: usize,
    places: &mut [Option<UnixStream>],
    secret: &str,
    patience: Duration,
) -> Result<(), JobError> {
    let started = Instant::now();
    listener.set_nonblocking(true)?;
    while let Some(missing) = places.iter().position(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                if let Some(rank) = greeted(&stream, secret)
                    && let Some(at) = rank.checked_sub(first)
                    && let Some(place @ None) = places.get_mut(at)
                {
                    *place = Some(stream);
                }
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) if started.elapsed() > patience => {
                return Err(gone(first + missing, "it has not come"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Ok(())
}

/// The rank of whoever proves to be of this crew.
fn greeted(stream: &UnixStream, expected: &str) -> Option<usize> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let Greeting { secret, rank } = hear(stream, 0).ok()?;
    stream.set_read_timeout(None).ok()?;
    (secret == expected).then_some(rank)
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

fn random_word() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

fn say<T: Serialize>(line: &UnixStream, rank: usize, message: &T) -> Result<(), JobError> {
    let bytes = serde_json::to_vec(message).map_err(JobError::internal)?;
    send(line, &bytes).map_err(|error| gone(rank, &error.to_string()))
}

fn hear<T: for<'de> Deserialize<'de>>(line: &UnixStream, rank: usize) -> Result<T, JobError> {
    let message = receive(line).map_err(|error| gone(rank, &error.to_string()))?;
    let message = message.ok_or_else(|| gone(rank, "it has ended"))?;
    serde_json::from_slice(&message).map_err(JobError::internal)
}

fn gone(rank: usize, reason: &str) -> JobError {
    JobError::unavailable(format!(
        "rank {rank} does not answer while the ranks come together: {reason}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_the_end_is_told_from_a_broken_one() {
        let (here, there) = UnixStream::pair().unwrap();
        send(&here, b"one").unwrap();
        send(&here, b"").unwrap();
        assert_eq!(receive(&there).unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(receive(&there).unwrap().as_deref(), Some(&b""[..]));
        (&here).write_all(&5u64.to_le_bytes()).unwrap();
        (&here).write_all(b"bro").unwrap();
        drop(here);
        assert!(receive(&there).is_err());
        let (here, there) = UnixStream::pair().unwrap();
        (&here).write_all(&u64::MAX.to_le_bytes()).unwrap();
        assert!(
            receive(&there)
                .unwrap_err()
                .to_string()
                .contains("message of")
        );
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert_eq!(receive(&there).unwrap(), None);
    }

    #[test]
    fn only_who_knows_the_secret_is_let_in() {
        let said = |secret: &str| {
            let (here, there) = UnixStream::pair().unwrap();
            let secret = secret.to_owned();
            say(&here, 0, &Greeting { secret, rank: 2 }).unwrap();
            greeted(&there, "word")
        };
        assert_eq!(said("word"), Some(2));
        assert_eq!(said("guess"), None);
        let (here, there) = UnixStream::pair().unwrap();
        send(&here, b"not a greeting").unwrap();
        assert_eq!(greeted(&there, "word"), None);
    }

    #[test]
    fn who_does_not_come_is_named_and_strangers_take_no_place() {
        let name = format!("wmtp-{}", random_word().unwrap());
        let listener = UnixListener::bind_addr(&address(&name).unwrap()).unwrap();
        let come = |secret: &str, rank| {
            let stream = UnixStream::connect_addr(&address(&name).unwrap()).unwrap();
            let secret = secret.to_owned();
            say(&stream, 0, &Greeting { secret, rank }).unwrap();
            stream
        };
        let _guests = [come("guess", 3), come("word", 1), come("word", 2)];
        let mut places = [None, None];
        let brief = Duration::from_millis(50);
        let error = meet(&listener, 2, &mut places, "word", brief).unwrap_err();
        assert!(places[0].is_some() && places[1].is_none());
        assert!(error.to_string().contains("rank 3"), "{error}");
        let _last = come("word", 3);
        meet(&listener, 2, &mut places, "word", PATIENCE).unwrap();
    }

    #[test]
    fn every_two_threads_are_linked() {
        let links = Links::among_threads(3).unwrap();
        for one in &links {
            assert!(one.peers[one.rank].is_none());
            for other in links.iter().filter(|other| other.rank != one.rank) {
                let message = format!("{} to {}", one.rank, other.rank);
                send(one.peers[other.rank].as_ref().unwrap(), message.as_bytes()).unwrap();
                let heard = receive(other.peers[one.rank].as_ref().unwrap()).unwrap();
                assert_eq!(heard, Some(message.into_bytes()));
            }
        }
    }
}
