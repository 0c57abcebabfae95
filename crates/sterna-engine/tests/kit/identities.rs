//! Certificates made for a test.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::fs;
use sterna_engine::identity::{AUTHORITY_FILE, CERTIFICATE_FILE, Identity, KEY_FILE};

/// An authority of its own.
pub(crate) struct Cluster {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "test cluster");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// An identity of this cluster for a host called `name`, which is also `127.0.0.1`.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        self.with_names(vec![
            SanType::DnsName(name.try_into().unwrap()),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ])
    }

    /// An identity with these names.
    pub(crate) fn with_names(&self, names: Vec<SanType>) -> Identity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(AUTHORITY_FILE), &self.certificate).unwrap();
        fs::write(folder.path().join(CERTIFICATE_FILE), certificate).unwrap();
        fs::write(folder.path().join(KEY_FILE), key.serialize_pem()).unwrap();
        Identity::load(folder.path()).unwrap()
    }
}
