//! TLS to a server, with libpq's words for how much of the server's certificate is checked.
//!
//! | `sslmode` | TLS | the certificate |
//! |---|---|---|
//! | `disable` | no | |
//! | `allow`, `prefer` | when the server offers it | not checked |
//! | `require` | yes | not checked, unless there is a root certificate: then as `verify-ca` |
//! | `verify-ca` | yes | signed by a root certificate, or one itself |
//! | `verify-full` | yes | that, and made out for the host's name (as an alternative name; a common name is not looked at) |
//!
//! Root certificates come from `sslrootcert`, else `~/.postgresql/root.crt`; a client certificate from `sslcert` and
//! `sslkey`, else `~/.postgresql/postgresql.crt` and `.key`. Sockets of the machine itself never use TLS.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::der::Decode;

use crate::error::{Error, Result};

/// How much of the server's certificate is checked, and whether a connection without TLS will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verification {
    /// TLS where the server offers it.
    Prefer,
    /// TLS.
    Require,
    /// TLS with a server whose certificate is signed by a root certificate.
    Authority,
    /// The same, and the certificate is made out for the host.
    Full,
}

impl Verification {
    /// `None`: no TLS.
    pub(super) fn from_sslmode(mode: &str) -> Result<Option<Self>> {
        match mode {
            "disable" => Ok(None),
            "allow" | "prefer" => Ok(Some(Self::Prefer)),
            "require" => Ok(Some(Self::Require)),
            "verify-ca" => Ok(Some(Self::Authority)),
            "verify-full" => Ok(Some(Self::Full)),
            _ => Err(Error::invalid("the connection string has an sslmode that is none of libpq's")
                .hint("one of disable, allow, prefer, require, verify-ca, verify-full")),
        }
    }

    pub(super) fn mode(self) -> SslMode {
        if self == Self::Prefer { SslMode::Prefer } else { SslMode::Require }
    }
}

/// What TLS needs, by file names: the files are read when a connection is made.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    verification: Option<Verification>,
    root: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// From the values of the connection string, by keyword.
    pub(super) fn new(
        verification: Option<Verification>,
        given: impl Fn(&str) -> Option<String>,
        home: Option<&Path>,
    ) -> Self {
        let file = |keyword: &str, default: &str| {
            let default = || Some(home?.join(".postgresql").join(default)).filter(|path| path.is_file());
            given(keyword).map(PathBuf::from).or_else(default)
        };
        let certificate = file("sslcert", "postgresql.crt").zip(file("sslkey", "postgresql.key"));
        Self { verification, root: file("sslrootcert", "root.crt"), certificate }
    }

    /// For tokio-postgres.
    pub(super) fn connector(&self) -> Result<MakeRustlsConnect> {
        self.client_config().map(MakeRustlsConnect::new)
    }

    /// Reads the certificates.
    pub(super) fn client_config(&self) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = self.verifier(&provider)?;
        let failed = |e: rustls::Error| Error::invalid("TLS cannot be set up").source(e);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let read = PrivateKeyDer::from_pem_file(key)
                    .map_err(|e| Error::invalid(format!("read the client's key {}", key.display())).source(e))?;
                builder.with_client_auth_cert(certificates(certificate)?, read).map_err(failed)?
            }
        };
        // What libpq says, too; sslnegotiation=direct needs it.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(config)
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Verifier> {
        let demanded = matches!(self.verification, Some(Verification::Authority | Verification::Full));
        let mut verifier = Verifier {
            provider: Arc::clone(provider),
            roots: Vec::new(),
            authority: None,
            name: self.verification == Some(Verification::Full),
        };
        if self.verification.is_none_or(|v| v == Verification::Prefer) {
            return Ok(verifier);
        }
        match &self.root {
            Some(path) => {
                verifier.roots = certificates(path)?;
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(verifier.roots.iter().cloned());
                // A file with nothing but a server's own certificate leaves the store empty, and is enough.
                let authority = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
                verifier.authority = authority.build().ok();
                Ok(verifier)
            }
            None if demanded => Err(Error::invalid("sslmode=verify-ca and verify-full need a root certificate")
                .hint("name a PEM file with sslrootcert=FILE in the connection string")),
            None => Ok(verifier),
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let failed = |e| Error::invalid(format!("read the certificates in {}", path.display())).source(e);
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<std::result::Result<_, _>>().map_err(failed)?;
    if found.is_empty() {
        return Err(Error::invalid(format!("{} holds no certificate", path.display())).hint("a PEM file is expected"));
    }
    Ok(found)
}

/// What SCRAM binds in of a server's certificate (`tls-server-end-point`, RFC 5929): its hash, by the algorithm of its
/// signature, but SHA-256 in place of anything weaker. `None` for signatures that hash in another way.
pub(super) fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use x509_cert::der::oid::db::rfc5912 as oid;
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    match parsed.signature_algorithm.oid {
        oid::SHA_1_WITH_RSA_ENCRYPTION | oid::SHA_256_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_256 => {
            Some(Sha256::digest(certificate).to_vec())
        }
        oid::SHA_384_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_384 => Some(Sha384::digest(certificate).to_vec()),
        oid::SHA_512_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_512 => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// Checks as much of a server's certificate as was asked for; that the server has its key, always.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// Certificates to trust; without any, every certificate will do.
    roots: Vec<CertificateDer<'static>>,
    authority: Option<Arc<WebPkiServerVerifier>>,
    /// Whether the host's name counts.
    name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.roots.is_empty() {
            return Ok(ServerCertVerified::assertion());
        }
        // A self-signed certificate that is itself among the roots, as many servers have it.
        if self.roots.iter().any(|root| root == end_entity) {
            if self.name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = self.authority.as_ref().ok_or(unknown)?;
        match authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at after everything else.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verification_needs_a_root_certificate() {
        let tls = |mode: &str, root: Option<&str>| {
            let given = |keyword: &str| root.filter(|_| keyword == "sslrootcert").map(str::to_owned);
            Tls::new(Verification::from_sslmode(mode).unwrap(), given, None).connector()
        };
        for mode in ["disable", "prefer", "require"] {
            assert!(tls(mode, None).is_ok(), "{mode}");
        }
        for mode in ["verify-ca", "verify-full"] {
            assert!(tls(mode, None).is_err(), "{mode}");
        }
        assert!(tls("require", Some("/nonexistent")).is_err(), "a root certificate that was named must be there");
        assert!(Verification::from_sslmode("verify").is_err());
    }
}
