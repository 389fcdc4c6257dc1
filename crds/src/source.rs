//! Where a program, an input or an assumed proof comes from: exactly one of several places.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// A key in the cluster's own store, or in any bucket.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::S3_BUCKET_SAYS_HOW_TO_SIGN_IN)]
#[x_kube(validation = rules::S3_OWN_STORE_NEEDS_NOTHING_ELSE)]
pub struct S3Source {
    /// Name of the bucket. Without it the key lies in the store of the ProverCluster, below `inputs/<namespace>/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"))]
    pub bucket: Option<String>,
    /// Key of the object.
    #[schemars(length(min = 1, max = 1024))]
    pub key: String,
    /// Region of the bucket, such as `eu-central-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub region: Option<String>,
    /// URL of an S3-compatible service, such as `https://minio.example.com:9000`. AWS where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048), regex(pattern = r"^https?://"))]
    pub endpoint: Option<String>,
    /// Secret of the job's namespace with the keys `accessKeyId`, `secretAccessKey` and perhaps `sessionToken`.
    /// It must carry the label `proving.rs/readable-by-proofjobs: "true"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<SecretReference>,
    /// The bucket may be read without credentials.
    #[serde(default, skip_serializing_if = "is_false")]
    pub anonymous: bool,
}

/// A Secret of the job's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A file on a web server.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Its address. Redirects and private addresses are refused unless the ProverCluster allows them.
    #[schemars(length(min = 10, max = 2048), regex(pattern = r"^https?://[^\s]+$"))]
    pub url: String,
    /// Secret of the job's namespace whose value is sent as a bearer token.
    /// It must carry the label `proving.rs/readable-by-proofjobs: "true"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ref: Option<KeyReference>,
}

/// A key of a ConfigMap or Secret of the job's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KeyReference {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of its `data` or `binaryData`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A file on the machine that runs local mode. A cluster refuses it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileSource {
    /// Path, relative to the folder of the manifest.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
}

/// The one place that a source names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place<'a> {
    /// The cluster's own store, or a bucket.
    S3(&'a S3Source),
    /// A web server.
    Http(&'a HttpSource),
    /// A ConfigMap of the job's namespace.
    ConfigMap(&'a KeyReference),
    /// A labelled Secret of the job's namespace.
    Secret(&'a KeyReference),
    /// Base64 in the manifest.
    Inline(&'a str),
    /// Text in the manifest, taken as its UTF-8 bytes.
    Text(&'a str),
    /// A file; in local mode only.
    File(&'a FileSource),
}

macro_rules! source {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident : $type:ty),* $(,)? } inline: $inline:ident) => {
        $(#[$meta])*
        #[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
        #[serde(rename_all = "camelCase")]
        #[x_kube(validation = rules::$inline)]
        #[x_kube(validation = rules::FILE_ONLY_IN_LOCAL_MODE)]
        #[x_kube(validation = rules::PLAIN_HTTP_NEEDS_HASH)]
        pub struct $name {
            /// The cluster's own store, or any bucket.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub s3: Option<S3Source>,
            /// A web server.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub http: Option<HttpSource>,
            /// A key of a ConfigMap of the job's namespace that carries the label
            /// `proving.rs/readable-by-proofjobs: "true"`.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub config_map: Option<KeyReference>,
            /// A key of a Secret of the job's namespace that carries the label
            /// `proving.rs/readable-by-proofjobs: "true"`.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub secret: Option<KeyReference>,
            /// A file of the machine that runs local mode. A cluster refuses it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub file: Option<FileSource>,
            /// Expected SHA-256 of the bytes, 64 lower-case hexadecimal digits. Other bytes fail the job.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
            pub sha256: Option<String>,
            $($(#[$field_meta])* pub $field: $type,)*
        }
    };
}

source! {
    /// The program to prove. Exactly one of `s3`, `http`, `configMap`, `secret`, `inline`, `file`.
    Program {
        /// The program itself in base64, at most 96 KiB.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(min = 1, max = 131_072))]
        #[x_kube(validation = rules::INLINE_IS_BASE64)]
        inline: Option<String>,
        /// Expected identity of the program as its proof system computes it, 64 lower-case hexadecimal digits:
        /// RISC Zero's image id, SP1's verifying key hash. Another program fails the job before anything is proved.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
        program_id: Option<String>,
    } inline: ONE_SOURCE_OF_PROGRAM
}

source! {
    /// What the program reads. At most one of `s3`, `http`, `configMap`, `secret`, `inline`, `text`, `file`; none of them: nothing.
    Input {
        /// The bytes in base64, at most 96 KiB.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(max = 131_072))]
        #[x_kube(validation = rules::INLINE_IS_BASE64)]
        inline: Option<String>,
        /// Text whose UTF-8 bytes are the input, at most 24,576 characters.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(max = 24_576))]
        text: Option<String>,
        /// How the bytes are handed to the program: `Raw` (as they are), `Frames` (each a little-endian u32 length
        /// and its bytes), `Stdin` (SP1's own serialized standard input).
        #[serde(default)]
        format: InputFormat,
    } inline: ONE_SOURCE_OF_INPUT
}

source! {
    /// A proof that the program assumes. Exactly one of `s3`, `http`, `configMap`, `secret`, `file`.
    Assumption {} inline: ONE_SOURCE_OF_ASSUMPTION
}

/// How the bytes of an input are handed to the program.
#[derive(
    Serialize,
    Deserialize,
    schemars::JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub enum InputFormat {
    /// As they are: the program's standard input.
    #[default]
    Raw,
    /// Frames, each a little-endian u32 length and its bytes; the program reads them one after the other.
    Frames,
    /// The prover's own serialized standard input: SP1's `SP1Stdin` in bincode.
    Stdin,
}

impl Program {
    /// The place that is named, none where none or several are.
    pub fn place(&self) -> Option<Place<'_>> {
        one_place(
            [&self.config_map, &self.secret],
            &self.s3,
            &self.http,
            &self.file,
            [self.inline.as_deref().map(Place::Inline), None],
        )
    }
}

impl Input {
    /// The place that is named, none where none or several are.
    pub fn place(&self) -> Option<Place<'_>> {
        one_place(
            [&self.config_map, &self.secret],
            &self.s3,
            &self.http,
            &self.file,
            [
                self.inline.as_deref().map(Place::Inline),
                self.text.as_deref().map(Place::Text),
            ],
        )
    }
}

impl Assumption {
    /// The place that is named, none where none or several are.
    pub fn place(&self) -> Option<Place<'_>> {
        one_place(
            [&self.config_map, &self.secret],
            &self.s3,
            &self.http,
            &self.file,
            [None, None],
        )
    }
}

fn one_place<'a>(
    [config_map, secret]: [&'a Option<KeyReference>; 2],
    s3: &'a Option<S3Source>,
    http: &'a Option<HttpSource>,
    file: &'a Option<FileSource>,
    [inline, text]: [Option<Place<'a>>; 2],
) -> Option<Place<'a>> {
    let mut places = [
        s3.as_ref().map(Place::S3),
        http.as_ref().map(Place::Http),
        config_map.as_ref().map(Place::ConfigMap),
        secret.as_ref().map(Place::Secret),
        file.as_ref().map(Place::File),
        inline,
        text,
    ]
    .into_iter()
    .flatten();
    match (places.next(), places.next()) {
        (Some(place), None) => Some(place),
        _ => None,
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
pub(crate) fn is_false(value: &bool) -> bool {
    !*value
}
