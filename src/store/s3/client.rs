//! The client: who we are, which TLS, how connections are made.
//!
//! Static keys are taken from the environment directly: loading AWS's whole chain costs every push some
//! milliseconds that are only worth it where keys are not static.

use std::{env, fmt, path::Path};

use aws_config::{
    BehaviorVersion, SdkConfig,
    profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider},
    provider_config::ProviderConfig,
};
use aws_credential_types::{Credentials, provider::ProvideCredentials as _};
use aws_sdk_s3::{
    Client,
    config::{
        IdentityCache, Region, SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
        retry::RetryConfig, timeout::TimeoutConfig,
    },
};
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};

use super::{
    S3Options,
    keys_file::{self, InFile},
};
use crate::error::{Error, Result};

/// An access key. Its secret parts never appear in any text.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// The access key id.
    pub id: String,
    /// The secret access key.
    pub secret: String,
    /// The session token of temporary keys.
    pub session_token: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Keys {
    fn from_environment() -> Option<Self> {
        let value = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        Some(Self {
            id: value("AWS_ACCESS_KEY_ID")?,
            secret: value("AWS_SECRET_ACCESS_KEY")?,
            session_token: value("AWS_SESSION_TOKEN"),
        })
    }
}

/// Who we are, as far as the configuration tells.
enum Source {
    /// Keys at hand.
    Keys(Keys),
    /// AWS's chain; and the placeholder in the file of keys, where that has no keys yet.
    Chain { unfilled: Option<String> },
}

impl Source {
    /// What is configured, in the order of its precedence: the environment, unless a profile is named; the file of keys;
    /// the chain.
    fn of(options: &S3Options) -> Result<Self> {
        let at_hand = || options.profile.is_none().then(Keys::from_environment).flatten();
        if let Some(keys) = options.keys.clone().or_else(at_hand) {
            return Ok(Self::Keys(keys));
        }
        let section = options.profile.as_deref().unwrap_or(keys_file::DEFAULT);
        Ok(match options.credentials_file.as_deref().map(|path| keys_file::read(path, section)).transpose()? {
            Some(InFile::Keys(keys)) => Self::Keys(keys),
            Some(InFile::Unfilled(place)) => Self::Chain { unfilled: Some(place) },
            Some(InFile::Nothing) | None => Self::Chain { unfilled: None },
        })
    }
}

/// What a place's credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Keys that hold until somebody revokes them.
    Keys(Keys),
    /// Keys that end by themselves: a role or a login gives out new ones, on this host.
    Temporary,
}

/// The credentials that a store with these options uses.
pub async fn credentials(options: &S3Options) -> Result<Found> {
    let keys = match Source::of(options)? {
        Source::Keys(keys) => keys,
        Source::Chain { .. } => {
            let chain = chain(options, http_client(options.ca_file.as_deref())?).await;
            let none = || Error::denied("this host has no credentials for the repository").hint(CHAIN);
            let provider = chain.credentials_provider().ok_or_else(none)?;
            let found = provider.provide_credentials().await.map_err(|e| none().source(e))?;
            if found.expiry().is_some() {
                return Ok(Found::Temporary);
            }
            Keys {
                id: found.access_key_id().to_owned(),
                secret: found.secret_access_key().to_owned(),
                session_token: found.session_token().map(str::to_owned),
            }
        }
    };
    Ok(if keys.session_token.is_some() { Found::Temporary } else { Found::Keys(keys) })
}

/// The mend where there are no credentials.
pub(super) const CHAIN: &str =
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role that the AWS chain finds";

pub(super) struct Made {
    pub(super) client: Client,
    /// The placeholder in the file of keys, where that has no keys yet.
    pub(super) unfilled: Option<String>,
    pub(super) endpoint: String,
    pub(super) unsigned_payload: bool,
}

/// Makes the client for a bucket.
pub(super) async fn make(options: &S3Options) -> Result<Made> {
    let tls = check_endpoint(options.endpoint.as_deref())?;
    let source = Source::of(options)?;
    // Reading the system's certificates takes tens of milliseconds: not where nothing is asked over TLS.
    let plain = !tls && matches!(source, Source::Keys(_));
    let http = if plain { Builder::new().build_http() } else { http_client(options.ca_file.as_deref())? };
    let environment = || ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().find_map(|name| env::var(name).ok());
    let mut region = options.region.clone().or_else(environment);
    let mut unfilled = None;
    let credentials = match source {
        Source::Keys(keys) => {
            SharedCredentialsProvider::new(Credentials::new(keys.id, keys.secret, keys.session_token, None, "keys"))
        }
        Source::Chain { unfilled: place } => {
            unfilled = place;
            let chain = chain(options, http.clone()).await;
            // A profile of its own has a region of its own.
            let own = options.profile.is_some() && options.region.is_none();
            let chained = chain.region().map(ToString::to_string);
            region = if own { chained.or(region) } else { region.or(chained) };
            chain.credentials_provider().ok_or_else(|| Error::denied("AWS's chain knows no source of credentials"))?
        }
    };
    let region = match (region, &options.endpoint) {
        (Some(region), _) => region,
        (None, Some(_)) => "us-east-1".to_owned(),
        (None, None) => {
            return Err(Error::invalid(format!("the region of bucket {} is not known", options.bucket))
                .hint("set region under [repository], or AWS_REGION in the environment"));
        }
    };
    let endpoint = options.endpoint.clone().unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version_latest()
        .region(Region::new(region))
        .credentials_provider(credentials)
        .http_client(http)
        .force_path_style(options.path_style)
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(options.connect_timeout).build());
    if let Some(endpoint) = &options.endpoint {
        config = config.endpoint_url(endpoint);
    }
    let client = Client::from_conf(config.build());
    Ok(Made { client, unfilled, endpoint, unsigned_payload: options.unsigned_payload.unwrap_or(tls) })
}

/// AWS's chain, or what the profile that is named tells.
async fn chain(options: &S3Options, http: SharedHttpClient) -> SdkConfig {
    match &options.profile {
        None => aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await,
        Some(profile) => of_profile(profile, http).await,
    }
}

/// What a profile tells. The standard chain would ask the environment first, which holds another repository's.
async fn of_profile(profile: &str, http: SharedHttpClient) -> SdkConfig {
    let chain = aws_config::defaults(BehaviorVersion::latest()).profile_name(profile).http_client(http.clone());
    let provider = ProfileFileCredentialsProvider::builder()
        .configure(&ProviderConfig::default().with_http_client(http))
        .profile_name(profile)
        .build();
    chain
        .credentials_provider(provider)
        .region(ProfileFileRegionProvider::builder().profile_name(profile).build())
        .load()
        .await
}

/// The same client with no credentials remembered. Connections are kept.
pub(super) fn with_fresh_credentials(client: &Client) -> Client {
    Client::from_conf(client.config().to_builder().identity_cache(IdentityCache::lazy().build()).build())
}

/// Whether it is spoken to over TLS.
fn check_endpoint(endpoint: Option<&str>) -> Result<bool> {
    let Some(endpoint) = endpoint else { return Ok(true) };
    if endpoint.contains('@') {
        return Err(Error::invalid("the endpoint holds a user name or password")
            .hint("credentials come from the environment or the AWS profile"));
    }
    match endpoint.split_once("://") {
        Some(("https", host)) if !host.is_empty() => Ok(true),
        Some(("http", host)) if !host.is_empty() => Ok(false),
        _ => Err(Error::invalid(format!("the endpoint \"{endpoint}\" is not a URL"))
            .hint("it looks like https://s3.example.com, or http://127.0.0.1:9000")),
    }
}

/// One client for the bucket and for whatever gives out credentials.
fn http_client(ca_file: Option<&Path>) -> Result<SharedHttpClient> {
    let mut trusted = TrustStore::default();
    if let Some(path) = ca_file {
        trusted.add_pem_certificate(std::fs::read(path).map_err(|e| Error::io("read the certificates in", path, e))?);
    }
    let context = TlsContext::builder().with_trust_store(trusted).build();
    let context = context.map_err(|e| Error::invalid("the certificates are of no use").source(e))?;
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(context.clone())
            .proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|c| c.sleep_impl()));
        connector.build()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_printed() {
        let keys = Keys { id: "AKIA".into(), secret: "hidden".into(), session_token: Some("hidden".into()) };
        assert_eq!(format!("{keys:?}"), "Keys { .. }");
        let mut options = S3Options::new("b", "p");
        options.keys = Some(keys);
        assert!(!format!("{options:?}").contains("hidden"));
    }

    #[test]
    fn an_endpoint_is_a_url_without_secrets() {
        assert!(check_endpoint(None).unwrap());
        assert!(check_endpoint(Some("https://s3.example.com")).unwrap());
        assert!(!check_endpoint(Some("http://127.0.0.1:9000")).unwrap());
        for bad in ["s3.example.com", "https://", "ftp://x"] {
            assert!(check_endpoint(Some(bad)).is_err(), "{bad}");
        }
        assert!(!check_endpoint(Some("https://me:hidden@host")).unwrap_err().to_string().contains("hidden"));
    }
}
