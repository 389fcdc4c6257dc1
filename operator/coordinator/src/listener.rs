//! Connections until somebody has signed in on them: accepted, encrypted, and bounded in number and time.
//!
//! Owns what a stranger can cost. Does not own who may sign in.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::metrics::Metrics;

/// Longest TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections on which nobody has signed in; further ones are closed. As many workers as may reconnect at once.
const GUESTS: usize = 4_096;
/// Finished handshakes that wait for the server.
const WAITING_CONNECTIONS: usize = 64;
/// Pause after the system refused to accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    guest: Arc<Guest>,
}

#[derive(Debug)]
struct Guest {
    signed_in: AtomicBool,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Peer {
    /// Somebody has signed in: the connection counts as a guest's no more.
    pub(crate) fn signed_in(&self) {
        self.guest.signed_in.store(true, Ordering::Release);
        self.guest
            .permit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that ends unless somebody signs in on it in time.
pub(crate) struct Connection {
    transport: Transport,
    peer: Peer,
    /// None once somebody has signed in.
    deadline: Option<Pin<Box<Sleep>>>,
    /// The streams of this connection have had their turn since something was to be written first.
    gathered: bool,
    metrics: Metrics,
}

impl Connection {
    /// Lets whatever runs beside this connection go first, once before each flush: all streams that were woken at the
    /// same time speak with one system call then, not each with its own. True: it is time to write.
    fn gather(&mut self, context: &mut Context<'_>) -> bool {
        if std::mem::replace(&mut self.gathered, true) {
            return true;
        }
        context.waker().wake_by_ref();
        false
    }

    fn check_deadline(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(deadline) = &mut self.deadline else {
            return Ok(());
        };
        if self.peer.guest.signed_in.load(Ordering::Acquire) {
            self.deadline = None;
            return Ok(());
        }
        if deadline.as_mut().poll(context).is_ready() {
            self.metrics.session_refused("sign_in_timeout");
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "nobody signed in on this connection in time",
            ));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_deadline(context)?;
        match &mut this.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.gather(context) {
            return Poll::Pending;
        }
        match &mut this.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.gathered = false;
        match &mut this.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Accepts connections until it is stopped; what it makes is served.
pub(crate) struct Listener {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Longest time from the handshake to the first call that signs in.
    pub(crate) sign_in_timeout: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
}

impl Listener {
    /// Starts to accept.
    pub(crate) fn accept(self) -> mpsc::Receiver<io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(WAITING_CONNECTIONS);
        tokio::spawn(self.run(sender));
        receiver
    }

    async fn run(self, connections: mpsc::Sender<io::Result<Connection>>) {
        let guests = Arc::new(Semaphore::new(GUESTS));
        let acceptor = self.tls.map(TlsAcceptor::from);
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                () = connections.closed() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    self.metrics.session_refused("accept_failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&guests).try_acquire_owned() else {
                self.metrics.session_refused("too_many_guests");
                continue;
            };
            let handshake = Handshake {
                stream,
                address,
                permit,
                acceptor: acceptor.clone(),
                sign_in_timeout: self.sign_in_timeout,
                metrics: self.metrics.clone(),
            };
            tokio::spawn(handshake.run(connections.clone()));
        }
    }
}

struct Handshake {
    stream: TcpStream,
    address: SocketAddr,
    permit: OwnedSemaphorePermit,
    acceptor: Option<TlsAcceptor>,
    sign_in_timeout: Duration,
    metrics: Metrics,
}

impl Handshake {
    async fn run(self, connections: mpsc::Sender<io::Result<Connection>>) {
        let address = self.address;
        // Latency only: a socket that refuses the option works all the same.
        let _ = self.stream.set_nodelay(true);
        let transport = match self.acceptor {
            None => Transport::Plain(self.stream),
            Some(acceptor) => {
                let limit = HANDSHAKE_TIMEOUT.min(self.sign_in_timeout);
                match tokio::time::timeout(limit, acceptor.accept(self.stream)).await {
                    Ok(Ok(stream)) => Transport::Tls(Box::new(stream)),
                    Ok(Err(error)) => {
                        tracing::debug!(%address, %error, "a TLS handshake failed");
                        return self.metrics.session_refused("handshake_failed");
                    }
                    Err(_) => return self.metrics.session_refused("handshake_timeout"),
                }
            }
        };
        let guest = Guest {
            signed_in: AtomicBool::new(false),
            permit: Mutex::new(Some(self.permit)),
        };
        let connection = Connection {
            transport,
            peer: Peer {
                address,
                guest: Arc::new(guest),
            },
            deadline: Some(Box::pin(tokio::time::sleep(self.sign_in_timeout))),
            gathered: false,
            metrics: self.metrics,
        };
        // Where the server has stopped, nobody wants the connection.
        let _ = connections.send(Ok(connection)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use tokio::io::AsyncReadExt;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn mk_connection(stream: TcpStream) -> Connection {
        let guest = Guest {
            signed_in: AtomicBool::new(true),
            permit: Mutex::new(None),
        };
        Connection {
            peer: Peer {
                address: stream.peer_addr().unwrap(),
                guest: Arc::new(guest),
            },
            transport: Transport::Plain(stream),
            deadline: None,
            gathered: false,
            metrics: Metrics::register(&prometheus::Registry::new()).unwrap(),
        }
    }

    #[tokio::test]
    async fn every_flush_waits_one_turn_for_what_else_is_to_be_said() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut connection = mk_connection(listener.accept().await.unwrap().0);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        for flushes in 1..=3 {
            let mut write = |bytes| Pin::new(&mut connection).poll_write(&mut context, bytes);
            assert!(write(b"one").is_pending(), "others come first");
            assert_eq!(
                woken.0.load(Ordering::Relaxed),
                flushes,
                "it comes back by itself"
            );
            assert!(matches!(write(b"one"), Poll::Ready(Ok(3))));
            assert!(
                matches!(write(b"two"), Poll::Ready(Ok(3))),
                "one flush waits once"
            );
            assert!(Pin::new(&mut connection).poll_flush(&mut context).is_ready());
            let mut said = [0; 6];
            other.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"onetwo");
        }
    }
}
