//! The loop of an I/O thread: it waits for the event sources of all its handlers and calls each in turn.
//!
//! The VMM makes one per thread and calls [`EventLoop::run_once`] repeatedly. Other threads add and take
//! virtio handlers through the [`LoopHandle`]. That happens between two rounds only: a handler that left
//! within a round would leave events that belong to nobody. The loop itself waits for nothing but events.

mod reply;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::journal;
use crate::virtio::QueueHandler;
use crate::virtio::handler::{GroupId, HandlerGroup, HandlerHost, IfLate, Stuck};
use crate::virtio::irq::VirtioIrq;
use crate::virtio::queue::VirtQueue;
use reply::ReplySender;
pub use reply::{Asked, HAND_BACK_LIMIT};

/// A handler that stays on its thread for as long as the machine lives.
pub trait Resident: MutEventSubscriber + Send {
    /// Returns whether the host has taken everything that the guest handed over.
    fn is_drained(&self) -> bool;
}

/// Waits for events and passes them to handlers. The thread that it runs on owns it.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
    residents: Vec<SubscriberId>,
    groups: BTreeMap<GroupId, Group>,
    /// Set when a virtio handler of this loop has failed.
    failed: Arc<AtomicBool>,
    commands: Receiver<Command>,
    handle: LoopHandle,
}

/// The access of other threads to a loop. Calls do nothing once the loop has gone.
#[derive(Clone)]
pub struct LoopHandle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    next_group: Arc<AtomicU64>,
}

enum Command {
    Start(GroupId, HandlerGroup),
    Stop(GroupId, IfLate, ReplySender),
}

/// The handlers of one device.
struct Group {
    name: String,
    running: Vec<SubscriberId>,
    /// The handlers that have failed.
    retired: Vec<Box<dyn QueueHandler>>,
    /// The request for the return of the group's queues.
    wanted: Option<(IfLate, ReplySender)>,
}

impl EventLoop {
    /// Makes a loop without handlers.
    ///
    /// # Errors
    /// The host has no more file descriptors.
    pub fn new() -> io::Result<Self> {
        let mut manager = EventManager::new_with_capacity(READY_EVENTS).map_err(io::Error::other)?;
        let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        manager.add_subscriber(Subscriber::Wake(wake.clone()));
        let (sender, commands) = mpsc::channel();
        let handle = LoopHandle { commands: sender, wake, next_group: Arc::default() };
        Ok(Self {
            manager,
            residents: Vec::new(),
            groups: BTreeMap::new(),
            failed: Arc::default(),
            commands,
            handle,
        })
    }

    /// Adds a handler that stays.
    pub fn add_resident(&mut self, resident: Box<dyn Resident>) {
        self.residents.push(self.manager.add_subscriber(Subscriber::Resident(resident)));
    }

    /// Returns whether no resident handler has anything left for the host.
    pub fn is_drained(&mut self) -> bool {
        let Self { manager, residents, .. } = self;
        residents.iter().all(|id| match manager.subscriber_mut(*id) {
            Ok(Subscriber::Resident(resident)) => resident.is_drained(),
            _ => true,
        })
    }

    /// Returns a handle for other threads.
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Waits for events, at most `timeout_millis` milliseconds (-1: without a limit), and serves them. Then
    /// serves the requests of the handles. Returns whether there were events.
    pub fn run_once(&mut self, timeout_millis: i32) -> bool {
        let served = match self.manager.run_with_timeout(timeout_millis) {
            Ok(count) => count > 0,
            Err(error) => {
                journal!(Host Error, "waiting for I/O events failed: {error}");
                false
            }
        };
        if self.failed.swap(false, Ordering::Relaxed) {
            self.retire_failed();
        }
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        if self.groups.values().any(|group| group.wanted.is_some()) {
            self.hand_back();
        }
        served
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(id, HandlerGroup { name, irq, handlers }) => {
                let running = handlers.into_iter().map(|handler| {
                    let (irq, failed) = (irq.clone(), self.failed.clone());
                    let running = Running { handler, irq, failed, has_failed: false };
                    self.manager.add_subscriber(Subscriber::Virtio(running))
                });
                let running = running.collect();
                self.groups.insert(id, Group { name, running, retired: Vec::new(), wanted: None });
            }
            Command::Stop(id, if_late, reply) => {
                let Some(group) = self.groups.get_mut(&id) else { return };
                group.wanted = Some((if_late, reply));
                self.quiesce(id, true);
            }
        }
    }

    fn quiesce(&mut self, id: GroupId, quiet: bool) {
        let Some(group) = self.groups.get(&id) else { return };
        for subscriber in &group.running {
            if let Ok(Subscriber::Virtio(running)) = self.manager.subscriber_mut(*subscriber) {
                running.handler.quiesce(quiet);
            }
        }
    }

    /// Removes failed handlers from their event sources.
    fn retire_failed(&mut self) {
        let Self { manager, groups, .. } = self;
        for group in groups.values_mut() {
            let Group { name, running, retired, wanted: _ } = group;
            running.retain(|id| {
                let has_failed = matches!(
                    manager.subscriber_mut(*id), Ok(Subscriber::Virtio(running)) if running.has_failed
                );
                if has_failed && let Ok(Subscriber::Virtio(failed)) = manager.remove_subscriber(*id) {
                    journal!(Guest Debug, "virtio {name}: a handler is retired");
                    retired.push(failed.handler);
                }
                !has_failed
            });
        }
    }

    /// Returns the groups that were asked for and have drained.
    fn hand_back(&mut self) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            if !self.is_group_drained(id) {
                continue;
            }
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let Some((if_late, reply)) = group.wanted.take() else { continue };
            let is_late = reply.is_abandoned();
            if is_late && if_late == IfLate::Continue {
                self.quiesce(id, false);
                continue;
            }
            let queues = self.remove_group(id);
            if !is_late {
                // A caller that gives up at this very moment still gets all of them.
                reply.send(queues);
            }
        }
    }

    fn is_group_drained(&mut self, id: GroupId) -> bool {
        let Self { manager, groups, .. } = self;
        let Some(group) = groups.get(&id).filter(|group| group.wanted.is_some()) else { return false };
        let are_drained = group.running.iter().all(|id| match manager.subscriber_mut(*id) {
            Ok(Subscriber::Virtio(running)) => running.handler.is_drained(),
            _ => true,
        });
        are_drained && group.retired.iter().all(|handler| handler.is_drained())
    }

    fn remove_group(&mut self, id: GroupId) -> Vec<VirtQueue> {
        let Some(Group { name: _, running, mut retired, wanted: _ }) = self.groups.remove(&id) else {
            return Vec::new();
        };
        for id in running {
            if let Ok(Subscriber::Virtio(running)) = self.manager.remove_subscriber(id) {
                retired.push(running.handler);
            }
        }
        retired.into_iter().flat_map(QueueHandler::stop).collect()
    }
}

impl LoopHandle {
    /// Ends the wait of [`EventLoop::run_once`].
    pub fn wake(&self) {
        // The only failure is a counter at its maximum, and then the event is already readable.
        let _ = self.wake.write(1);
    }

    fn send(&self, command: Command) {
        // A command to a loop that has gone is dropped, and its sender notices that.
        let _ = self.commands.send(command);
        self.wake();
    }
}

impl HandlerHost for LoopHandle {
    fn start(&self, group: HandlerGroup) -> GroupId {
        let id = GroupId(self.next_group.fetch_add(1, Ordering::Relaxed));
        self.send(Command::Start(id, group));
        id
    }

    fn ask(&self, group: GroupId, if_late: IfLate) -> Asked {
        let (asked, reply) = reply::pair();
        self.send(Command::Stop(group, if_late, reply));
        asked
    }

    fn wait(&self, asked: Asked) -> Result<Vec<VirtQueue>, Stuck> {
        asked.wait()
    }
}

/// The one type of subscriber of the loop.
enum Subscriber {
    Resident(Box<dyn Resident>),
    Virtio(Running),
    Wake(Arc<EventFd>),
}

struct Running {
    handler: Box<dyn QueueHandler>,
    irq: VirtioIrq,
    failed: Arc<AtomicBool>,
    has_failed: bool,
}

impl Running {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.has_failed {
            return;
        }
        if let Err(error) = self.handler.process(events, ops) {
            journal!(Guest Warn, "virtio: {error}; the device needs a reset");
            self.has_failed = true;
            self.failed.store(true, Ordering::Relaxed);
            self.handler.quiesce(true);
            self.irq.needs_reset();
        }
    }
}

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        match self {
            Self::Resident(resident) => resident.init(ops),
            Self::Virtio(running) => running.handler.start(ops),
            Self::Wake(event) => watch(ops, &**event, 0, EventSet::IN),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            Self::Resident(resident) => resident.process(events, ops),
            Self::Virtio(running) => running.process(events, ops),
            Self::Wake(event) => {
                let _ = event.read();
            }
        }
    }
}

/// Adds a file descriptor to a loop. It fails only if epoll cannot wait for such a file, which the caller has
/// ruled out.
pub fn watch(ops: &mut EventOps<'_>, source: &impl std::os::fd::AsRawFd, data: u32, set: EventSet) {
    if let Err(error) = ops.add(Events::with_data(source, data, set)) {
        journal!(Host Error, "an I/O source cannot be watched: {error}");
    }
}

/// The largest number of events of a round. The next round takes the rest.
const READY_EVENTS: usize = 64;
