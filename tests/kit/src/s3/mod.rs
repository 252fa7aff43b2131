//! A real S3 server over HTTP in the test's own process, with faults on demand.
//!
//! It runs on a thread and a runtime of its own, so that a test can start child processes that talk to it, or
//! block, without stopping it.

mod backend;
mod fault;
mod kept;
mod process;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use self::{
    backend::{Backend, State},
    fault::{Faulty, lock},
};
pub use self::{
    backend::{Conditions, Object},
    fault::{Fault, Seen, What},
    process::S3Process,
};

pub(crate) const BUCKET: &str = "walden-test";
pub(crate) const ACCESS_KEY: &str = "TESTACCESSKEY";
pub(crate) const SECRET_KEY: &str = "test/secret+key";

/// The certificate of localhost and 127.0.0.1, signed by an authority whose own key was thrown away.
pub const CERTIFICATE: &[u8] = include_bytes!("tls/server.pem");
/// Its key.
pub const CERTIFICATE_KEY: &[u8] = include_bytes!("tls/server.key");

/// What a server is to be like.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// It speaks TLS, with a certificate that [`S3Server::authority`] vouches for.
    pub https: bool,
    /// Where it listens; 0 is any that is free.
    pub port: u16,
    /// Where it keeps its objects, durably before it answers. Otherwise they are in memory only.
    pub folder: Option<PathBuf>,
    /// How long every request takes to arrive.
    pub latency: Duration,
}

/// A running server. It stops, and forgets everything, when this is dropped.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    https: bool,
    backend: Backend,
    rules: Arc<Mutex<Vec<Fault>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    latency: Arc<Mutex<Duration>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server on a free port of 127.0.0.1, with one empty bucket.
    ///
    /// # Panics
    /// When no port can be listened on.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// The same over TLS, with a certificate that [`authority`](Self::authority) vouches for.
    ///
    /// # Panics
    /// When no port can be listened on.
    #[must_use]
    pub fn start_https() -> Self {
        Self::start_with(Options { https: true, ..Options::default() })
    }

    /// A file with the certificate of the authority behind the servers that speak TLS.
    #[must_use]
    pub fn authority() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/s3/tls/authority.pem"))
    }

    /// The same as is wished.
    ///
    /// # Panics
    /// When that port cannot be listened on, or the folder not be read.
    #[must_use]
    pub fn start_with(Options { https, port, folder, latency }: Options) -> Self {
        let tls = https.then(tls);
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port to listen on");
        listener.set_nonblocking(true).expect("a listener that does not block");
        let address = listener.local_addr().expect("the port that was chosen");
        let mut state = State::default();
        state.buckets.entry(BUCKET.to_owned()).or_default();
        if let Some(folder) = folder {
            state.keep_in(folder).expect("the folder of a server");
        }
        let backend = Backend(Arc::new(Mutex::new(state)));
        let mut builder = S3ServiceBuilder::new(backend.clone());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let (rules, seen, latency) = (Arc::default(), Arc::default(), Arc::new(Mutex::new(latency)));
        let faulty = Faulty {
            service: builder.build(),
            rules: Arc::clone(&rules),
            seen: Arc::clone(&seen),
            latency: Arc::clone(&latency),
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! { () = serve(listener, tls, faulty) => {}, _ = stopped => {} }
            });
        });
        Self { address, https, backend, rules, seen, latency, stop: Some(stop), thread: Some(thread) }
    }

    /// The URL to talk to, without a bucket. Buckets are part of the path.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.address)
    }

    /// The bucket that is there from the start.
    #[must_use]
    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// The access key id that may do everything.
    #[must_use]
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// Its secret.
    #[must_use]
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// Makes another bucket.
    pub fn create_bucket(&self, name: &str) {
        self.backend.state().buckets.entry(name.to_owned()).or_default();
    }

    /// Says how writes under a condition are treated from now on.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.backend.state().conditions = conditions;
    }

    /// Lets a listing hold at most that many names.
    pub fn set_page(&self, names: usize) {
        self.backend.state().page = Some(names);
    }

    /// Lets nobody delete objects whose keys hold one of these; without any everything may be deleted again.
    pub fn set_locked(&self, parts: &[&str]) {
        self.backend.state().locked = parts.iter().map(|part| (*part).to_owned()).collect();
    }

    /// How long every request takes to arrive from now on, those that a fault takes as well.
    pub fn set_latency(&self, latency: Duration) {
        *lock(&self.latency) = latency;
    }

    /// Adds a fault.
    pub fn fault(&self, fault: Fault) {
        lock(&self.rules).push(fault);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        lock(&self.rules).clear();
    }

    /// What was asked so far, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    /// How often an operation was asked for.
    #[must_use]
    pub fn count(&self, operation: &str) -> usize {
        lock(&self.seen).iter().filter(|s| s.operation == operation).count()
    }

    /// How many multipart uploads were begun and neither completed nor aborted.
    #[must_use]
    pub fn open_uploads(&self) -> usize {
        self.backend.state().open_uploads()
    }

    /// The names of everything in the first bucket.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.backend.state().buckets.get(BUCKET).map(|b| b.keys().cloned().collect()).unwrap_or_default()
    }

    /// An object of the first bucket.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Object> {
        self.backend.state().buckets.get(BUCKET)?.get(key).cloned()
    }

    /// Puts other bytes in the place of an object of the first bucket, or nothing.
    pub fn replace(&self, key: &str, bytes: Option<Vec<u8>>) {
        let mut state = self.backend.state();
        let Some(bucket) = state.buckets.get_mut(BUCKET) else { return };
        match (bucket.get_mut(key), bytes) {
            (Some(object), Some(bytes)) => object.set(bytes),
            _ => drop(bucket.remove(key)),
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tls() -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(CERTIFICATE_KEY).expect("a key");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions that ring knows")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a certificate that fits its key");
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, faulty: Faulty) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, faulty) = (tls.clone(), faulty.clone());
        tokio::spawn(async move {
            match tls {
                None => converse(stream, faulty).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        converse(stream, faulty).await;
                    }
                }
            }
        });
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, faulty: Faulty) {
    let service = service_fn(move |request| faulty.clone().answer(request));
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A connection that a fault broke off ends in an error; that was the wish.
    drop(connection.await);
}
