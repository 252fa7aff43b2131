//! From a connection string to a server that listens: hosts in their order, TLS, start-up and authentication.

use std::{net::IpAddr, path::Path, sync::Arc};

use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use tokio_postgres::config::{Config, Host, SslMode, SslNegotiation};
use tokio_rustls::TlsConnector;

use super::{
    authenticate::{Credentials, authenticate},
    wire::{Socket, Wire},
};
use crate::{
    error::{Error, Result},
    postgres::{Conninfo, tls},
};

/// A socket that is open, and the hash of the certificate at its other end.
pub(super) struct Opened {
    socket: Box<dyn Socket>,
    certificate: Option<Vec<u8>>,
}

impl Opened {
    /// The socket alone.
    pub(super) fn into_socket(self) -> Box<dyn Socket> {
        self.socket
    }
}

/// One of the servers that a connection string names.
#[derive(Clone, Debug)]
pub(super) struct Address {
    /// Its name, where it has one: what its certificate is held against.
    name: Option<String>,
    host: Host,
    port: u16,
}

/// The servers that a connection string names, in its order.
pub(super) fn addresses(config: &Config) -> Result<Vec<Address>> {
    let (hosts, numbers, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(numbers.len());
    let fits = |length: usize| length <= 1 || length == count;
    if count == 0 || !fits(hosts.len()) || !fits(numbers.len()) || !fits(ports.len()) {
        return Err(Error::invalid("the connection string names another number of hosts than of addresses or ports")
            .hint("give one port for all hosts, or one for each"));
    }
    let address = |index: usize| {
        let number = numbers.get(index).map(IpAddr::to_string);
        let name = match hosts.get(index) {
            Some(Host::Tcp(name)) => Some(name.clone()),
            Some(Host::Unix(_)) => None,
            None => number.clone(),
        };
        let host = number.map(Host::Tcp).or_else(|| hosts.get(index).cloned())?;
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        Some(Address { name, host, port })
    };
    Ok((0..count).filter_map(address).collect())
}

/// Opens a socket to that server, with TLS as the connection string has it.
pub(super) async fn open(address: &Address, conninfo: &Conninfo) -> Result<Opened> {
    match &address.host {
        // The machine's own sockets never use TLS.
        Host::Unix(directory) => unix(directory, address.port).await,
        Host::Tcp(host) => {
            let failed = |e| Error::failed("connect").source(e);
            let socket = TcpStream::connect((host.as_str(), address.port)).await.map_err(failed)?;
            tune(&socket, &conninfo.config).map_err(failed)?;
            secure(socket, address.name.as_deref().unwrap_or(host), conninfo).await
        }
    }
}

async fn unix(directory: &Path, port: u16) -> Result<Opened> {
    let path = directory.join(format!(".s.PGSQL.{port}"));
    let socket = UnixStream::connect(&path).await.map_err(|e| Error::io("connect to", &path, e))?;
    Ok(Opened { socket: Box::new(socket), certificate: None })
}

/// Notices when the other host has vanished.
fn tune(socket: &TcpStream, config: &Config) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    if config.get_keepalives() {
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, config.get_keepalives_idle())?;
        if let Some(interval) = config.get_keepalives_interval() {
            sockopt::set_tcp_keepintvl(socket, interval)?;
        }
        if let Some(count) = config.get_keepalives_retries() {
            sockopt::set_tcp_keepcnt(socket, count)?;
        }
    }
    if let Some(limit) = config.get_tcp_user_timeout() {
        sockopt::set_tcp_user_timeout(socket, u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(())
}

/// Asks for TLS and speaks it, or goes on without where that is allowed.
async fn secure(mut socket: TcpStream, name: &str, conninfo: &Conninfo) -> Result<Opened> {
    let (mode, negotiation) = (conninfo.config.get_ssl_mode(), conninfo.config.get_ssl_negotiation());
    let plain = |socket| Ok(Opened { socket: Box::new(socket), certificate: None });
    if mode == SslMode::Disable {
        return plain(socket);
    }
    if negotiation == SslNegotiation::Postgres {
        let failed = |e| Error::failed("ask the server for TLS").source(e);
        let mut request = bytes::BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request).await.map_err(failed)?;
        // Not a byte more: what follows belongs to TLS.
        match (socket.read_u8().await.map_err(failed)?, mode) {
            (b'S', _) => {}
            (_, SslMode::Prefer) => return plain(socket),
            _ => {
                return Err(Error::failed("the server does not offer TLS")
                    .hint("set ssl = on in its postgresql.conf, or another sslmode in the connection string"));
            }
        }
    }
    let failed = |e: std::io::Error| {
        Error::failed("TLS with the server")
            .source(e)
            .hint("sslmode and sslrootcert say how its certificate is checked")
    };
    let config = conninfo.tls.client_config()?;
    let name = ServerName::try_from(name.to_owned()).map_err(|e| failed(std::io::Error::other(e)))?;
    let socket = TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(failed)?;
    let certificate = socket.get_ref().1.peer_certificates().and_then(|c| tls::end_point(c.first()?));
    Ok(Opened { socket: Box::new(socket), certificate })
}

/// Introduces us as a physical replication client, and proves who we are.
pub(super) async fn start(opened: Opened, conninfo: &Conninfo) -> Result<Wire> {
    let config = &conninfo.config;
    let user = config.get_user().unwrap_or_default();
    let mut parameters = vec![("client_encoding", "UTF8"), ("user", user), ("replication", "true")];
    // No database: a physical walsender has none.
    parameters.extend(config.get_options().map(|options| ("options", options)));
    parameters.extend(config.get_application_name().map(|name| ("application_name", name)));
    let mut wire = Wire::new(opened.socket);
    wire.send(|out| frontend::startup_message(parameters, out)).await?;
    let who = Credentials {
        user,
        password: conninfo.replication_password(),
        binding: config.get_channel_binding(),
        certificate: opened.certificate,
    };
    authenticate(&mut wire, &who).await?;
    Ok(wire)
}
