//! Ordered mode: the events of a key one after the other. Each partition is leased to one worker, which reads it from a cursor; a
//! commit moves the cursor, or writes nothing.

mod advance;
mod batch;
mod crew;
mod growth;
mod intake;
mod lease;
mod lines;
mod members;
mod rounds;
mod shares;
mod tenure;

#[cfg(test)]
pub(crate) use advance::Step;
#[cfg(test)]
pub(crate) use batch::Item;
pub(crate) use crew::Crew;
#[cfg(test)]
pub(crate) use lines::Aside;
