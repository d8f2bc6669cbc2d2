//! What components tell root: kept until the caller has its answer, then acted upon.

use alloc::collections::VecDeque;

use idl::builder::{BuildError, BuilderServer, Built};
use idl::supervisor::{Detail, StopReason, SupervisorServer};

/// What components told root, in order.
#[derive(Default)]
pub struct Inbox(VecDeque<(usize, News)>);

/// One message.
pub enum News {
    /// It serves now.
    Ready,
    /// It is done.
    Exit,
    /// It cannot go on.
    Failed(Detail),
    /// Its guest stopped.
    GuestStopped(StopReason, Detail),
    /// Its guest is built.
    Built(Built),
    /// Its guest cannot be built.
    BuildFailed(BuildError),
}

impl Inbox {
    /// The oldest message and the place of its sender.
    pub fn take(&mut self) -> Option<(usize, News)> {
        self.0.pop_front()
    }

    fn add(&mut self, client: u64, news: News) {
        // Badges are root's own: instance + 1, interface.
        let place = usize::try_from(client >> 8).unwrap_or(0).wrapping_sub(1);
        self.0.push_back((place, news));
    }
}

impl SupervisorServer for Inbox {
    fn ready(&mut self, client: u64) {
        self.add(client, News::Ready);
    }
    fn guest_stopped(&mut self, client: u64, reason: StopReason, detail: Detail) {
        self.add(client, News::GuestStopped(reason, detail));
    }
    fn failed(&mut self, client: u64, detail: Detail) {
        self.add(client, News::Failed(detail));
    }
    fn exit(&mut self, client: u64) {
        self.add(client, News::Exit);
    }
}

impl BuilderServer for Inbox {
    fn built(&mut self, client: u64, result: Built) {
        self.add(client, News::Built(result));
    }
    fn failed(&mut self, client: u64, error: BuildError) {
        self.add(client, News::BuildFailed(error));
    }
}
