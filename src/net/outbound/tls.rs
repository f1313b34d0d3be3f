//! Whom we trust.

use std::io::BufReader;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::base::error::{Error, Kind, Result};

/// Largest `ca_file` read, in bytes: the platforms' own bundles have about 220 KiB.
const CA_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The platform's roots: read once, when the first https upstream is called, since they take about
/// 10 ms and 1 MB that a gateway to loopback upstreams never needs.
static PLATFORM: OnceLock<Arc<ClientConfig>> = OnceLock::new();

/// A configuration that trusts the platform's roots. Blocks in file I/O the first time.
///
/// # Errors
/// When the platform has no usable roots. The next call looks again.
pub(in crate::net) fn platform() -> Result<Arc<ClientConfig>> {
    if let Some(config) = PLATFORM.get() {
        return Ok(Arc::clone(config));
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Bundles hold old certificates that rustls cannot read; the others count.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let error = Error::new(
            Kind::UpstreamConnect,
            "this machine has no root certificates; install ca-certificates or set ca_file",
        );
        return Err(match found.errors.into_iter().next() {
            Some(cause) => error.because(cause),
            None => error,
        });
    }
    Ok(Arc::clone(PLATFORM.get_or_init(|| config(roots))))
}

/// A configuration that trusts only the certificates in this file.
///
/// # Errors
/// [`Kind::Internal`] when the file cannot be read or holds no certificate.
pub(in crate::net) fn only(ca_file: &Path) -> Result<Arc<ClientConfig>> {
    let shown = ca_file.display();
    let unusable = |what: &str| Error::new(Kind::Internal, format!("ca_file {shown}: {what}"));
    let file = std::fs::File::open(ca_file)
        .map_err(|error| unusable("it cannot be read").because(error))?;
    let limited = std::io::Read::take(file, CA_FILE_BYTES_MAX);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_reader_iter(BufReader::new(limited)) {
        let certificate = certificate.map_err(|error| unusable("it is not PEM").because(error))?;
        roots
            .add(certificate)
            .map_err(|error| unusable("a certificate in it cannot be used").because(error))?;
    }
    if roots.is_empty() {
        return Err(unusable("there is no certificate in it"));
    }
    Ok(config(roots))
}

fn config(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    #[expect(
        clippy::expect_used,
        reason = "ring has suites for both versions; no input changes that"
    )]
    let builder = builder.with_safe_default_protocol_versions().expect("TLS 1.2 and 1.3");
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}
