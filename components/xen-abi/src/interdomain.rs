//! Event channels whose other end is not in this domain: channels of connections to backends and other
//! domains, from either end. The port table and everything else is `event.rs`.
//!
//! Called by the VMM, when the other end binds, closes or sends, and by `EVTCHNOP_bind_interdomain` of a
//! driver domain. Never asks who may: a port that waits for a domain is for that domain.

use core::task::Poll;

use crate::domain::Domain;
use crate::env::{Env, LinkId};
use crate::errno::Errno;
use crate::memory::GuestMemory;
use crate::ports::{Binding, Port};

impl Domain {
    /// Binds a port that waits for domain `remote` to a channel of the connection to it. `Inval`: the
    /// port does not wait for that domain. `far` is what the other end calls the channel; it only tells
    /// the guest.
    pub fn bind_channel(
        &mut self,
        port: u32,
        remote: u16,
        link: LinkId,
        channel: u16,
        far: u32,
    ) -> Result<(), Errno> {
        match self.ports.get_mut(port) {
            Some(entry) if entry.binding == (Binding::Unbound { remote }) => {
                entry.binding = Binding::Channel {
                    link,
                    channel,
                    remote,
                };
                self.ports.set_far(port, far);
                Ok(())
            }
            _ => Err(Errno::Inval),
        }
    }

    /// Whether the port is still this channel: a guest closes its ports without asking.
    #[must_use]
    pub fn is_channel(&self, port: u32, link: LinkId, channel: u16) -> bool {
        matches!(
            self.ports.get(port),
            Some(Port { binding: Binding::Channel { link: l, channel: c, .. }, .. })
                if (*l, *c) == (link, channel)
        )
    }

    /// The other end of a channel was closed: its port waits for that domain again.
    pub fn unbind_channel(&mut self, port: u32, link: LinkId, channel: u16) {
        if self.is_channel(port, link, channel)
            && let Some(entry) = self.ports.get_mut(port)
            && let Binding::Channel { remote, .. } = entry.binding
        {
            entry.binding = Binding::Unbound { remote };
        }
    }

    /// The other end of a channel sent an event.
    pub fn notify_channel<M: GuestMemory, E: Env>(
        &mut self,
        port: u32,
        link: LinkId,
        channel: u16,
        memory: &M,
        env: &mut E,
    ) {
        if self.is_channel(port, link, channel)
            && let Some(&Port { vcpu, .. }) = self.ports.get(port)
        {
            self.set_pending(port, vcpu, memory, env);
        }
    }

    /// Binds a port of another domain. As in Xen, a full table answers first, and what was sent before
    /// is not lost.
    pub(crate) fn bind_remote<M: GuestMemory, E: Env>(
        &mut self,
        remote: u16,
        port: u32,
        memory: &M,
        env: &mut E,
    ) -> Poll<Result<u32, Errno>> {
        let local = match self.allocate_port(Binding::Unbound { remote }, 0, memory) {
            Ok(local) => local,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let bound = env.bind_remote(remote, port, local).map(|answer| {
            let (link, channel) = answer?;
            self.bind_channel(local, remote, link, channel, port)
        });
        if let Poll::Ready(Ok(())) = bound {
            self.set_pending(local, 0, memory, env);
        } else {
            self.ports.release(local);
        }
        bound.map(|answer| answer.map(|()| local))
    }
}
