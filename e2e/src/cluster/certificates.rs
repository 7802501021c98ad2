//! Certificates and keys of the cluster, all signed by one authority.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use super::layout::{HOST_ADDRESS, Layout, Place, SERVICE_ADDRESS};

/// Whoever uses a certificate: the name of its files, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Names `<file>.crt` and `<file>.key`.
    pub file: String,
    /// The user's name to the API server.
    pub common_name: String,
    /// The user's group.
    pub organization: Option<&'static str>,
    /// Names and addresses that it serves under; empty for one that is only a client.
    pub served: Vec<String>,
}

impl Identity {
    fn client(file: &str, common_name: &str, organization: Option<&'static str>) -> Self {
        Self {
            file: file.to_owned(),
            common_name: common_name.to_owned(),
            organization,
            served: Vec::new(),
        }
    }

    fn api_server() -> Self {
        Self {
            served: vec![
                Ipv4Addr::LOCALHOST.to_string(),
                SERVICE_ADDRESS.to_string(),
                HOST_ADDRESS.to_string(),
                "localhost".to_owned(),
                "kubernetes.default.svc".to_owned(),
            ],
            ..Self::client("apiserver", "kube-apiserver", None)
        }
    }

    /// A kubelet: client to the API server, and server to it for logs and exec, which checks the
    /// address.
    fn kubelet(node: Place) -> Self {
        Self {
            served: vec![node.address().to_string(), node.name()],
            ..Self::client(
                &node.name(),
                &format!("system:node:{}", node.name()),
                Some("system:nodes"),
            )
        }
    }
}

/// Everybody who needs a certificate in a cluster of these nodes.
pub fn identities(nodes: &[Place]) -> Vec<Identity> {
    let masters = Some("system:masters");
    let mut all = vec![
        Identity::api_server(),
        Identity::client("admin", "admin", masters),
        Identity::client("controller-manager", "system:kube-controller-manager", None),
        Identity::client("scheduler", "system:kube-scheduler", None),
        Identity::client(
            "apiserver-kubelet-client",
            "apiserver-kubelet-client",
            masters,
        ),
    ];
    all.extend(nodes.iter().map(|node| Identity::kubelet(*node)));
    all
}

/// Makes everything anew in the certificate directory.
pub fn create(layout: &Layout, nodes: &[Place]) -> Result<()> {
    let directory = layout.certificates();
    let authority = authority().context("failed to make the certificate authority")?;
    write(&layout.authority(), &authority.pem())?;
    for identity in identities(nodes) {
        let (certificate, key) = issue(&authority, &identity)
            .with_context(|| format!("failed to make the certificate of {:?}", identity.file))?;
        write(
            &directory.join(format!("{}.crt", identity.file)),
            &certificate,
        )?;
        write(&directory.join(format!("{}.key", identity.file)), &key)?;
    }
    let tokens = KeyPair::generate()?;
    write(&directory.join("tokens.key"), &tokens.serialize_pem())?;
    write(&directory.join("tokens.pub"), &tokens.public_key_pem())
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = name("device-plugin-operator local cluster", None);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    Ok(CertifiedIssuer::self_signed(
        parameters,
        KeyPair::generate()?,
    )?)
}

/// The certificate and the key of `identity`, both as PEM.
fn issue(
    authority: &CertifiedIssuer<'static, KeyPair>,
    identity: &Identity,
) -> Result<(String, String)> {
    let mut parameters = CertificateParams::new(identity.served.clone())?;
    parameters.distinguished_name = name(&identity.common_name, identity.organization);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !identity.served.is_empty() {
        parameters
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    let key = KeyPair::generate()?;
    let certificate = parameters.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

/// Keys among it: nobody but root reads them.
fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("failed to create {:?}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("failed to write {:?}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(file: &str) -> Option<Identity> {
        let nodes: Vec<_> = Place::first(2).collect();
        identities(&nodes)
            .into_iter()
            .find(|identity| identity.file == file)
    }

    #[test]
    fn the_api_server_serves_under_every_name_it_is_called() {
        let served = identity("apiserver").map(|identity| identity.served);
        assert_eq!(
            served.unwrap_or_default(),
            [
                "127.0.0.1",
                "10.96.0.1",
                "10.200.0.1",
                "localhost",
                "kubernetes.default.svc"
            ]
        );
    }

    #[test]
    fn a_kubelet_serves_under_its_address_and_belongs_to_the_nodes() {
        let second = identity("n2");
        assert_eq!(
            second,
            Some(Identity {
                file: "n2".to_owned(),
                common_name: "system:node:n2".to_owned(),
                organization: Some("system:nodes"),
                served: vec!["10.200.0.12".to_owned(), "n2".to_owned()],
            })
        );
    }

    #[test]
    fn names_and_addresses_are_in_the_certificate() -> Result<()> {
        let authority = authority()?;
        let kubelet = identity("n1").context("n1 is the first node")?;
        let parameters = CertificateParams::new(kubelet.served.clone())?;
        let address = parameters
            .subject_alt_names
            .iter()
            .any(|name| matches!(name, rcgen::SanType::IpAddress(_)));
        assert!(address, "an address must not become a DNS name");
        let (certificate, key) = issue(&authority, &kubelet)?;
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"));
        let certificate = rustls::pki_types::CertificateDer::from_pem(&certificate)?;
        // A subject alternative name of type address (tag 0x87) with its four bytes.
        let wanted = [0x87, 4, 10, 200, 0, 11];
        assert!(certificate.windows(6).any(|bytes| bytes == wanted));
        Ok(())
    }

    trait FromPem: Sized {
        fn from_pem(pem: &str) -> Result<Self>;
    }

    impl FromPem for rustls::pki_types::CertificateDer<'static> {
        fn from_pem(pem: &str) -> Result<Self> {
            use rustls::pki_types::pem::PemObject;
            Ok(Self::from_pem_slice(pem.as_bytes())?)
        }
    }

    #[test]
    fn keys_are_for_root_only() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let scratch = tempfile::tempdir()?;
        let path = scratch.path().join("x.key");
        write(&path, "secret")?;
        assert_eq!(path.metadata()?.permissions().mode() & 0o777, 0o600);
        Ok(())
    }
}
