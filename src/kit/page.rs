//! A kit on paper: a page of plain text to type in, and one in HTML that has QR codes as well. Both say of whom it is and
//! how it is read again; neither needs anything from outside.

use std::fmt::Write as _;

use qrcodegen::{Mask, QrCode, QrCodeEcc, QrSegment, Version};

use super::{envelope::Locked, manifest::Manifest, paper};
use crate::{
    error::{Error, Result},
    human,
    seal::sha256,
};

/// What is printed.
#[derive(Clone, Copy, Debug)]
pub struct Sheet<'a> {
    /// What the kit says of itself.
    pub manifest: &'a Manifest,
    /// How it is locked.
    pub locked: Locked,
    /// Its file.
    pub bytes: &'a [u8],
}

impl Sheet<'_> {
    /// What stands above the text, line by line.
    fn head(&self) -> Vec<String> {
        let Manifest { host, walden, made, clusters, repositories, .. } = self.manifest;
        let holds = |what: &str, is_in: bool| if is_in { format!(", {what}") } else { String::new() };
        let urls: Vec<&str> = repositories.iter().map(|repository| repository.url.as_str()).collect();
        vec![
            format!("Recovery kit of {host}, made {} by Walden {walden}", human::exact_time(*made)),
            format!("Cluster {} in {}", clusters.join(", "), urls.join(", ")),
            format!(
                "Holds the configuration{}{}. {}",
                holds("access keys", self.manifest.credentials),
                holds("the identity", self.manifest.identity),
                match self.locked {
                    Locked::Open => "It holds no secret and is not locked.",
                    Locked::Passphrase => "It is locked with a passphrase, which must not be kept on this paper.",
                    Locked::Recipients => "It is locked to the recipients of the repository: it takes their identity.",
                }
            ),
            "Type in or scan everything from WALDEN KIT to END into a file, then: walden kit import FILE".to_owned(),
            format!("{} bytes, SHA-256 {}", self.bytes.len(), sha256(self.bytes)),
        ]
    }

    /// As plain text.
    pub fn text(&self) -> Result<String> {
        let head: String = self.head().iter().fold(String::new(), |head, line| format!("{head}# {line}\n"));
        Ok(format!("{head}\n{}\n", paper::lines(self.bytes)?.join("\n")))
    }

    /// As HTML, with QR codes.
    pub fn html(&self) -> Result<String> {
        use crate::report::xml;
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>Recovery kit of {}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
            xml(&self.manifest.host)
        );
        for (line, tag) in self.head().iter().zip(["h1", "p", "p", "p", "p"]) {
            _ = writeln!(page, "<{tag}>{}</{tag}>", xml(line));
        }
        _ = writeln!(page, "<pre>{}</pre>\n<div class=\"codes\">", xml_lines(&paper::lines(self.bytes)?));
        let codes = paper::codes(self.bytes)?;
        for (text, number) in codes.iter().zip(1..) {
            let sum = &sha256(text.as_bytes())[..8];
            _ = writeln!(
                page,
                "<figure>{}<figcaption>{number} of {} · SHA-256 {sum}…</figcaption></figure>",
                svg(&code(text)?),
                codes.len()
            );
        }
        page.push_str("</div>\n</body>\n</html>\n");
        Ok(page)
    }
}

const STYLE: &str = "
@page { size: A4; margin: 14mm; }
body { margin: 0 auto; max-width: 182mm; color: #000; background: #fff; font: 9.5pt/1.4 system-ui, sans-serif; }
h1 { font-size: 12pt; margin: 0 0 2mm; }
p { margin: 0 0 1mm; overflow-wrap: anywhere; }
pre { font: 8.5pt/1.35 ui-monospace, \"DejaVu Sans Mono\", Menlo, Consolas, monospace; margin: 4mm 0; }
.codes { display: flex; flex-wrap: wrap; gap: 4mm; }
figure { margin: 0; width: 86mm; break-inside: avoid; text-align: center; font-size: 8pt; }
figure svg { display: block; width: 86mm; height: 86mm; }
";

/// Line feeds stay.
fn xml_lines(lines: &[String]) -> String {
    lines.iter().map(|line| crate::report::xml(line)).collect::<Vec<_>>().join("\n")
}

/// The QR code of a text of its alphanumeric mode, which stores two characters in eleven bits. Medium correction: a
/// seventh of it may be soiled.
fn code(text: &str) -> Result<QrCode> {
    let failed = |what: String| Error::internal(format!("draw a QR code: {what}"));
    if !QrSegment::is_alphanumeric(text) {
        return Err(failed("a character is not of its alphabet".into()));
    }
    let segments = [QrSegment::make_alphanumeric(text)];
    // `None` is the mask that the standard would choose.
    let mask: Option<Mask> = None;
    QrCode::encode_segments_advanced(&segments, QrCodeEcc::Medium, Version::MIN, Version::MAX, mask, true)
        .map_err(|e| failed(e.to_string()))
}

/// The code as SVG, with the empty border that scanners need.
fn svg(code: &QrCode) -> String {
    const BORDER: i32 = 4;
    let size = code.size();
    let mut path = String::new();
    for y in 0..size {
        let mut x = 0;
        while x < size {
            let from = x;
            while x < size && code.get_module(x, y) {
                x += 1;
            }
            if x > from {
                _ = write!(path, "M{} {}h{}v1h-{}z", from + BORDER, y + BORDER, x - from, x - from);
            }
            x += 1;
        }
    }
    let side = size + 2 * BORDER;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {side} {side}\" shape-rendering=\"crispEdges\"><path fill=\"#fff\" d=\"M0 0h{side}v{side}h-{side}z\"/><path d=\"{path}\"/></svg>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::manifest::FORMAT;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            walden: "0.1.0".into(),
            made: chrono::DateTime::UNIX_EPOCH,
            host: "db<1>".into(),
            account: "postgres".into(),
            repositories: Vec::new(),
            clusters: vec!["main".into()],
            recipients: Vec::new(),
            identity: false,
            credentials: true,
            missing: Vec::new(),
            members: Vec::new(),
        }
    }

    #[test]
    fn the_text_of_a_page_is_the_kit() {
        let bytes: Vec<u8> = (0..1500_u32).map(|n| (n * n) as u8).collect();
        let manifest = manifest();
        let sheet = Sheet { manifest: &manifest, locked: Locked::Passphrase, bytes: &bytes };
        assert_eq!(paper::read(&sheet.text().unwrap()).unwrap(), bytes);
        let html = sheet.html().unwrap();
        let (_, text) = html.split_once("<pre>").unwrap();
        assert_eq!(paper::read(text.split_once("</pre>").unwrap().0).unwrap(), bytes);
        assert!(html.contains("db&lt;1&gt;") && !html.contains("src=") && !html.contains("href="));
    }

    #[test]
    fn the_codes_are_read_by_a_reader_that_is_not_ours() {
        let bytes: Vec<u8> = (0..1500_u32).map(|n| (n * n / 7) as u8).collect();
        let mut scanned = Vec::new();
        for text in paper::codes(&bytes).unwrap() {
            let code = code(&text).unwrap();
            assert!(code.version().value() <= 20, "small enough for paper");
            // Four dots a module, as a camera would see it.
            let side = usize::try_from(code.size() + 8).unwrap() * 4;
            let dot = |at: usize| i32::try_from(at / 4).unwrap() - 4;
            let mut image = rqrr::PreparedImage::prepare_from_greyscale(side, side, |x, y| {
                if code.get_module(dot(x), dot(y)) { 0 } else { 255 }
            });
            let found = image.detect_grids();
            assert_eq!(found.len(), 1);
            scanned.push(found[0].decode().unwrap().1);
        }
        assert!(scanned.len() > 1);
        assert_eq!(paper::read(&scanned.join("\n")).unwrap(), bytes);
    }
}
