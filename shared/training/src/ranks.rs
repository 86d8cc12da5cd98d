//! The ranks of a run: processes with a device each that share the sequences of every optimizer step.
//!
//! Each rank holds all weights, takes some of the step's micro-batches and sums their gradients. Of every parameter one rank, its
//! owner, adds the sums of all ranks, keeps the moments, does the update and sends the new weights to the others (ZeRO stage 1:
//! Rajbhandari et al. 2020, section 5.1). Sums are taken in the order of ranks, so a run is the same bit for bit each time; with
//! another number of ranks it differs in rounding.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wmtp_job_kit::{Exit, Links, crew};

use crate::buffer::Buffer;
use crate::engine::Side;
use crate::error::{Error, Result, Shortage};
use crate::optimizer::{Parameter, assign};

/// Messages on their way to one rank that wait for it at most: each can be a whole tensor.
const WAITING: usize = 4;

/// How long a rank may compute before the others have something of it: a step of any model takes less, a card that hangs
/// more.
const SILENCE: Duration = Duration::from_hours(2);

/// One rank and its links to the others.
#[derive(Debug)]
pub struct Ranks {
    links: Links,
    silence: Duration,
}

/// What the leader has the others do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The next step.
    Advance,
    /// Their part of the state, into this folder.
    Save(PathBuf),
    /// The state of this folder.
    Restore(PathBuf),
    /// The best weights in place.
    Finish,
    /// Their part of what the model makes of these rows.
    Score(Side, Vec<usize>),
}

/// A number that crosses to another rank as it is: JSON would round it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Exact(u64);

impl From<f64> for Exact {
    fn from(number: f64) -> Self {
        Self(number.to_bits())
    }
}

impl From<Exact> for f64 {
    fn from(exact: Exact) -> Self {
        Self::from_bits(exact.0)
    }
}

/// Lists of numbers, and the number of what they belong to.
pub(crate) type Found = (usize, Vec<Vec<f64>>);

/// What became of one rank's part.
#[derive(Debug, Serialize, Deserialize)]
enum Part<T> {
    Done(T),
    NoRoom(Shortage),
    Failed { exit: Exit, reason: String },
}

/// Something that is sent as bytes.
type Parcel<'a> = Arc<dyn AsRef<[u8]> + Send + Sync + 'a>;

/// Numbers of a tensor as bytes.
struct Numbers<'a>(Cow<'a, Buffer>);

impl AsRef<[u8]> for Numbers<'_> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Where parcels for the other ranks are left; a thread for each carries them out.
struct Outbox<'a> {
    to: Vec<Option<SyncSender<Parcel<'a>>>>,
}

impl<'a> Outbox<'a> {
    /// A rank that takes nothing more has gone, which reading from it tells.
    fn leave(&self, rank: usize, parcel: Parcel<'a>) {
        if let Some(sender) = &self.to[rank] {
            let _ = sender.send(parcel);
        }
    }

    fn leave_for_all(&self, parcel: &Parcel<'a>) {
        for rank in 0..self.to.len() {
            self.leave(rank, Arc::clone(parcel));
        }
    }
}

impl Ranks {
    /// The only one.
    pub fn alone() -> Arc<Self> {
        Self::linked(Links::alone())
    }

    /// One of several.
    pub fn linked(links: Links) -> Arc<Self> {
        Arc::new(Self {
            links,
            silence: SILENCE,
        })
    }

    /// How many there are.
    pub fn world(&self) -> usize {
        self.links.peers.len()
    }

    /// This one's number, from 0.
    pub fn rank(&self) -> usize {
        self.links.rank
    }

    /// Whether this one leads: it speaks for all.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there are others.
    pub fn are_several(&self) -> bool {
        self.world() > 1
    }

    /// Whether the piece of work of this number is this rank's.
    pub(crate) fn takes(&self, number: usize) -> bool {
        number % self.world() == self.rank()
    }

    /// Has the others do something; they hear it where they [`Self::hear`].
    pub(crate) fn order(&self, order: &Order) -> Result<()> {
        let bytes = serde_json::to_vec(order).map_err(io::Error::from);
        let bytes = bytes.map_err(|source| self.lost(self.rank(), &source))?;
        for rank in 1..self.world() {
            crew::send(self.peer(rank), &bytes).map_err(|source| self.lost(rank, &source))?;
        }
        Ok(())
    }

    /// What the leader wants next, however long it has other things to do; nothing when it has gone.
    pub(crate) fn hear(&self) -> Result<Option<Order>> {
        let leader = self.peer(0);
        let heard = leader
            .set_read_timeout(None)
            .and_then(|()| crew::receive(leader));
        let heard = heard.map_err(|source| self.lost(0, &source))?;
        heard.map(|bytes| self.read(0, &bytes)).transpose()
    }

    /// What every rank has to say, in their order.
    pub(crate) fn share<T: Serialize + DeserializeOwned>(&self, mine: T) -> Result<Vec<T>> {
        if !self.are_several() {
            return Ok(vec![mine]);
        }
        let bytes = serde_json::to_vec(&mine).map_err(io::Error::from);
        let bytes = bytes.map_err(|source| self.lost(self.rank(), &source))?;
        let mut mine = Some(mine);
        let mut message = (bytes.len() as u64).to_le_bytes().to_vec();
        message.extend(bytes);
        self.exchange(|outbox| {
            outbox.leave_for_all(&(Arc::new(message) as Parcel<'_>));
            let heard = |rank| {
                if let Some(mine) = mine.take_if(|_| rank == self.rank()) {
                    return Ok(mine);
                }
                let heard = crew::receive(self.peer(rank));
                let heard = heard.map_err(|source| self.lost(rank, &source))?;
                self.read(rank, &heard.ok_or_else(|| self.ended(rank))?)
            };
            (0..self.world()).map(heard).collect()
        })
    }

    /// What every rank's part came to, in their order.
    ///
    /// # Errors
    /// All ranks end with an error where one does: [`Error::NoRoom`] if that is all that any lacks, else this one's own error,
    /// or [`Error::Rank`] for the first other one's.
    pub(crate) fn agree<T: Serialize + DeserializeOwned>(&self, mine: Result<T>) -> Result<Vec<T>> {
        if !self.are_several() {
            return mine.map(|done| vec![done]).map_err(Error::told);
        }
        let (part, mut own) = match mine {
            Ok(done) => (Part::Done(done), None),
            Err(error) => (Part::of(&error), Some(error)),
        };
        let (mut done, mut no_room) = (Vec::new(), None);
        for (rank, part) in self.share(part)?.into_iter().enumerate() {
            match part {
                Part::Done(one) => done.push(one),
                Part::NoRoom(shortage) => {
                    no_room.get_or_insert(shortage);
                }
                Part::Failed { exit, reason } => {
                    let own = own.take_if(|_| rank == self.rank());
                    return Err(own.unwrap_or(Error::Rank { rank, reason, exit }));
                }
            }
        }
        no_room.map_or(Ok(done), |shortage| Err(Error::NoRoom(shortage)))
    }

    /// Lists of numbers that every rank has found, each under its number; the order is nobody's.
    pub(crate) fn pool(&self, mine: Result<Vec<Found>>) -> Result<Vec<Found>> {
        if !self.are_several() {
            return mine.map_err(Error::told);
        }
        let exact = |list: Vec<f64>| list.into_iter().map(Exact::from).collect::<Vec<_>>();
        let mine = mine.map(|found| {
            let sent = |(number, lists): Found| {
                let lists: Vec<_> = lists.into_iter().map(exact).collect();
                (number, lists)
            };
            found.into_iter().map(sent).collect::<Vec<_>>()
        });
        let plain = |list: Vec<Exact>| list.into_iter().map(f64::from).collect();
        let all = self.agree(mine)?.into_iter().flatten();
        Ok(all
            .map(|(number, lists)| (number, lists.into_iter().map(plain).collect()))
            .collect())
    }

    /// Adds up the sums of all ranks, each at its owner; what the others keep of it has no meaning. Those that no rank has
    /// `touched` stay as they are.
    pub(crate) fn reduce(
        &self,
        owners: &[usize],
        touched: &[bool],
        sums: &mut [Buffer],
    ) -> Result<()> {
        if !self.are_several() {
            return Ok(());
        }
        self.exchange(|outbox| {
            let sums = sums.iter_mut().zip(owners).zip(touched);
            for ((sum, &owner), _) in sums.filter(|(_, touched)| **touched) {
                if owner == self.rank() {
                    self.add_up(sum)?;
                } else {
                    let sum: &Buffer = sum;
                    outbox.leave(owner, Arc::new(Numbers(sum.on_host()?)));
                }
            }
            Ok(())
        })
    }

    /// Sends the parameters of every owner to all.
    pub(crate) fn spread(&self, owners: &[usize], parameters: &[Parameter]) -> Result<()> {
        if !self.are_several() {
            return Ok(());
        }
        self.exchange(|outbox| {
            for (parameter, &owner) in parameters.iter().zip(owners) {
                if owner == self.rank() {
                    let values = Numbers(Cow::Owned(Buffer::of(&parameter.var)?));
                    outbox.leave_for_all(&(Arc::new(values) as Parcel<'_>));
                } else {
                    let mut values =
                        Buffer::zeros(parameter.var.dtype(), parameter.var.elem_count())?;
                    self.take_numbers(owner, &mut values)?;
                    assign(parameter, &values)?;
                }
            }
            Ok(())
        })
    }

    /// The sum over all ranks in their order: this one's part is in `sum`, and the whole is afterwards.
    fn add_up(&self, sum: &mut Buffer) -> Result<()> {
        let mut theirs = sum.zeros_on_host();
        let mut total: Option<Buffer> = None;
        for rank in 0..self.world() {
            let part = if rank == self.rank() {
                sum.on_host()?
            } else {
                self.take_numbers(rank, &mut theirs)?;
                Cow::Borrowed(&theirs)
            };
            match &mut total {
                None => total = Some(part.into_owned()),
                Some(total) => total.plus(&part)?,
            }
        }
        if let Some(total) = total
            && let Some(total) = total.beside(sum)?
        {
            *sum = total;
        }
        Ok(())
    }

    fn take_numbers(&self, from: usize, into: &mut Buffer) -> Result<()> {
        self.peer(from)
            .read_exact(into.as_bytes_mut())
            .map_err(|source| self.lost(from, &source))
    }

    /// Runs `body`, while a thread for each other rank carries out what it leaves there. So no rank waits for another to
    /// listen before it listens itself.
    fn exchange<'a, T>(&self, body: impl FnOnce(&Outbox<'a>) -> Result<T>) -> Result<T> {
        for (rank, peer) in self.links.peers.iter().enumerate() {
            let Some(peer) = peer else { continue };
            peer.set_read_timeout(Some(self.silence))
                .and_then(|()| peer.set_write_timeout(Some(self.silence)))
                .map_err(|source| self.lost(rank, &source))?;
        }
        thread::scope(|scope| {
            let carried = self.links.peers.iter().map(|peer| {
                peer.as_ref().map(|stream| {
                    let (sender, receiver) = sync_channel(WAITING);
                    scope.spawn(move || carry(stream, &receiver));
                    sender
                })
            });
            let outbox = Outbox {
                to: carried.collect(),
            };
            let done = body(&outbox);
            if done.is_err() {
                self.close();
            }
            done
        })
    }

    /// Ends all links, which ends whoever waits at one.
    fn close(&self) {
        for peer in self.links.peers.iter().flatten() {
            // One that is closed already is what this is for.
            let _ = peer.shutdown(Shutdown::Both);
        }
    }

    fn peer(&self, rank: usize) -> &UnixStream {
        let peer = self.links.peers[rank].as_ref();
        peer.expect("no rank is its own peer")
    }

    fn read<T: DeserializeOwned>(&self, rank: usize, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| self.lost(rank, &error.into()))
    }

    fn ended(&self, rank: usize) -> Error {
        self.lost(rank, &io::Error::other("it has ended"))
    }

    fn lost(&self, rank: usize, source: &io::Error) -> Error {
        let reason = match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("it has said nothing for {:?}", self.silence)
            }
            _ => source.to_string(),
        };
        Error::RankLost {
            rank,
            world: self.world(),
            reason,
        }
    }
}

/// Sends what comes, until no more can come. A rank that has gone takes nothing: reading from it tells.
fn carry(mut stream: &UnixStream, parcels: &Receiver<Parcel<'_>>) {
    while let Ok(parcel) = parcels.recv() {
        if stream.write_all((*parcel).as_ref()).is_err() {
            return;
        }
    }
}

impl<T> Part<T> {
    fn of(error: &Error) -> Self {
        match error {
            Error::OutOfMemory(shortage) | Error::NoRoom(shortage) => {
                Self::NoRoom(shortage.clone())
            }
            error => Self::Failed {
                exit: error.exit(),
                reason: error.said(),
            },
        }
    }
}

/// The owner of each of these parameters, which all ranks come to alike: the largest first, each to who has least.
pub(crate) fn owners(lengths: &[usize], world: usize) -> Vec<usize> {
    let mut largest_first: Vec<usize> = (0..lengths.len()).collect();
    largest_first.sort_by_key(|&index| (std::cmp::Reverse(lengths[index]), index));
    let (mut loads, mut owners) = (vec![0; world], vec![0; lengths.len()]);
    for index in largest_first {
        let least = (0..world).min_by_key(|&rank| loads[rank]).unwrap_or(0);
        loads[least] += lengths[index];
        owners[index] = least;
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor, Var};

    fn among<T: Send>(world: usize, body: impl Fn(&Ranks) -> T + Sync) -> Vec<T> {
        let links = Links::among_threads(world).unwrap();
        thread::scope(|scope| {
            let body = &body;
            let started: Vec<_> = links
                .into_iter()
                .map(|links| scope.spawn(move || body(&Ranks::linked(links))))
                .collect();
            started
                .into_iter()
                .map(|rank| rank.join().unwrap())
                .collect()
        })
    }

    #[test]
    fn owners_have_about_as_much_each_and_nobody_is_left_out() {
        assert_eq!(owners(&[5, 1, 4, 3], 2), [0, 0, 1, 1]);
        assert_eq!(owners(&[7], 3), [0]);
        assert_eq!(owners(&[2, 2, 2], 1), [0, 0, 0]);
    }

    #[test]
    fn numbers_cross_as_they_are() {
        let odd = [0.1 + 0.2, f64::MIN_POSITIVE / 2.0, -0.0, f64::NAN, 1e300];
        let shared = among(2, |ranks| {
            let mine: Vec<Exact> = odd.iter().map(|&number| number.into()).collect();
            ranks.share(mine).unwrap()
        });
        for all in shared {
            for numbers in all {
                for (found, expected) in numbers.into_iter().zip(odd) {
                    assert_eq!(f64::from(found).to_bits(), expected.to_bits());
                }
            }
        }
    }

    #[test]
    fn messages_larger_than_a_socket_holds_cross_all_at_once() {
        let told = among(3, |ranks| {
            let mine = vec![ranks.rank(); 1 << 20];
            ranks.share(mine).unwrap()
        });
        for all in told {
            assert!(
                all.iter()
                    .enumerate()
                    .all(|(rank, one)| one == &vec![rank; 1 << 20])
            );
        }
    }

    #[test]
    fn a_rank_that_hangs_is_given_up() {
        let mut links = Links::among_threads(2).unwrap();
        // It is there and says nothing.
        let _silent = links.pop();
        let ranks = Ranks {
            links: links.pop().unwrap(),
            silence: Duration::from_millis(20),
        };
        let error = ranks.share(1).unwrap_err().to_string();
        assert_eq!(error, "rank 1 of 2 is lost: it has said nothing for 20ms");
    }

    #[test]
    fn sums_are_taken_in_the_order_of_ranks_at_the_owner() {
        // In single precision (1e8 + 3) - 1e8 is 0 or 8, not 3; another order would give another sum.
        let parts = [1e8_f32, 3.0, -1e8, 1.0];
        let expected = ((parts[0] + parts[1]) + parts[2]) + parts[3];
        let owners = [0, 1, 2, 3, 1];
        let ended = among(4, |ranks| {
            let part = parts[ranks.rank()];
            let mut sums: Vec<Buffer> = (0..5).map(|_| Buffer::F32(vec![part; 70_000])).collect();
            let touched = [true, true, true, true, false];
            ranks.reduce(&owners, &touched, &mut sums).unwrap();
            sums
        });
        for (index, &owner) in owners.iter().enumerate() {
            let Buffer::F32(sum) = &ended[owner][index] else {
                panic!("another kind");
            };
            let expected = if index == 4 { parts[owner] } else { expected };
            assert!(
                sum.iter().all(|one| one.to_bits() == expected.to_bits()),
                "{index}: {}",
                sum[0]
            );
        }
    }

    #[test]
    fn what_the_owners_have_reaches_all() {
        let ended = among(3, |ranks| {
            let parameter = |index: usize| Parameter {
                name: index.to_string(),
                var: {
                    let value = (10 * index + ranks.rank()) as f64;
                    let tensor = Tensor::full(value, (3, 2), &Device::Cpu).unwrap();
                    Var::from_tensor(&tensor).unwrap()
                },
                lr: 1.0,
                decays: false,
            };
            let parameters: Vec<Parameter> = (0..3).map(parameter).collect();
            ranks.spread(&[2, 0, 1], &parameters).unwrap();
            let first = |p: &Parameter| p.var.flatten_all().unwrap().to_vec1::<f64>().unwrap()[5];
            parameters.iter().map(first).collect::<Vec<_>>()
        });
        assert!(
            ended.iter().all(|values| values == &[2.0, 10.0, 21.0]),
            "{ended:?}"
        );
    }

    #[test]
    fn orders_are_followed_until_the_leader_goes() {
        let heard = among(2, |ranks| {
            if ranks.leads() {
                ranks.order(&Order::Save("/a folder".into())).unwrap();
                ranks.order(&Order::Advance).unwrap();
                return Vec::new();
            }
            let mut heard = Vec::new();
            while let Some(order) = ranks.hear().unwrap() {
                heard.push(format!("{order:?}"));
            }
            heard
        });
        assert_eq!(heard[1], ["Save(\"/a folder\")", "Advance"]);
    }
}
