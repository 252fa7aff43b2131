//! Who we are: the password as it is, by MD5, or by SCRAM-SHA-256 with the server's certificate bound in where there is
//! TLS, as libpq does it (`src/interfaces/libpq/fe-auth.c`, `pg_fe_sendauth`).

use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::frontend,
};
use tokio_postgres::config::ChannelBinding;

use super::{
    message::{Authentication, Message, unexpected},
    refusal,
    wire::Wire,
};
use crate::error::{Error, Result};

/// What is shown to the server.
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a [u8]>,
    /// What `channel_binding` demands.
    pub(super) binding: ChannelBinding,
    /// The hash of the server's certificate (`tls-server-end-point`), where there is one.
    pub(super) certificate: Option<Vec<u8>>,
}

impl Credentials<'_> {
    fn password(&self) -> Result<&[u8]> {
        self.password.ok_or_else(|| {
            Error::invalid("the server wants a password").hint(
                "put it into the password file (~/.pgpass), with \"replication\" as the database, or into PGPASSWORD",
            )
        })
    }

    /// Whether the server may do without channel binding. Asked before the password is used.
    fn unbound(&self) -> Result<()> {
        if self.binding != ChannelBinding::Require {
            return Ok(());
        }
        Err(Error::failed("channel_binding=require, but the server does not bind its certificate in")
            .hint("it needs TLS and a role whose password is stored as scram-sha-256"))
    }
}

/// Answers what the server asks until it believes us.
pub(super) async fn authenticate(wire: &mut Wire, who: &Credentials<'_>) -> Result<()> {
    match next(wire).await? {
        Authentication::Ok => return who.unbound(),
        Authentication::Cleartext => {
            who.unbound()?;
            let password = who.password()?;
            wire.send(|out| frontend::password_message(password, out)).await?;
        }
        Authentication::Md5(salt) => {
            who.unbound()?;
            let hash = md5_hash(who.user.as_bytes(), who.password()?, salt);
            wire.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
        }
        Authentication::Sasl(mechanisms) => scram(wire, who, &mechanisms).await?,
        other => return Err(unknown(&other)),
    }
    match next(wire).await? {
        Authentication::Ok => Ok(()),
        other => Err(unknown(&other)),
    }
}

async fn scram(wire: &mut Wire, who: &Credentials<'_>, offered: &[String]) -> Result<()> {
    let offers = |mechanism: &str| offered.iter().any(|o| o == mechanism);
    let certificate = who.certificate.clone().filter(|_| who.binding != ChannelBinding::Disable);
    let (mechanism, binding) = match certificate {
        Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash))
        }
        // Says that we could: where the server could, too, somebody in between has taken the offer out.
        Some(_) => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    if !offers(mechanism) {
        return Err(Error::failed(format!(
            "the server offers {} to authenticate by, none of which is known",
            offered.join(", ")
        ))
        .hint("SCRAM-SHA-256 and SCRAM-SHA-256-PLUS are"));
    }
    if mechanism == SCRAM_SHA_256 {
        who.unbound()?;
    }
    let mut scram = ScramSha256::new(who.password()?, binding);
    wire.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
    let failed = |e| Error::failed("the server could not prove that it knows the password").source(e);
    match next(wire).await? {
        Authentication::SaslContinue(challenge) => scram.update(&challenge).map_err(failed)?,
        other => return Err(unknown(&other)),
    }
    wire.send(|out| frontend::sasl_response(scram.message(), out)).await?;
    match next(wire).await? {
        Authentication::SaslFinal(proof) => scram.finish(&proof).map_err(failed),
        other => Err(unknown(&other)),
    }
}

async fn next(wire: &mut Wire) -> Result<Authentication> {
    loop {
        match wire.receive().await? {
            Message::Authentication(asked) => return Ok(asked),
            Message::Notice(_) => {}
            Message::Error(said) => return Err(refusal(said)),
            _ => return Err(unexpected("in the middle of authentication")),
        }
    }
}

fn unknown(asked: &Authentication) -> Error {
    match asked {
        Authentication::Other(7..=9) => Error::invalid("the server wants GSSAPI or SSPI, which Walden does not know")
            .hint("allow scram-sha-256 or a client certificate for this role in pg_hba.conf"),
        Authentication::Other(number) => {
            Error::invalid(format!("the server wants authentication {number}, which is unknown"))
                .hint("allow scram-sha-256 for this role in pg_hba.conf")
        }
        _ => unexpected("out of turn in its authentication"),
    }
}
