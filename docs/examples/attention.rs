// The cross-attention of a decoder layer, in Rust, compared with a test vector of refseq2seq.
//
//     refseq2seq vectors make VECTORS --family x_transformers --cases 1
//     rustc --edition 2021 -O -o attention docs/examples/attention.rs
//     ./attention VECTORS/x_transformers-00-ordinary THEIRS/x_transformers-00-ordinary
//     refseq2seq vectors check VECTORS THEIRS

use std::{env, error::Error, fs, path::Path};

const LAYER: &str = "decoder.layers.0.cross_attention.";

struct Array {
    shape: Vec<usize>,
    x: Vec<f64>,
}

/// A file: a length of 8 bytes, a JSON header of that length, the bytes of the arrays.
struct Safetensors {
    header: String,
    data: Vec<u8>,
}

impl Safetensors {
    fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        let bytes = fs::read(path)?;
        let n = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
        let header = String::from_utf8(bytes[8..8 + n].to_vec())?;
        Ok(Self { header, data: bytes[8 + n..].to_vec() })
    }

    fn array(&self, name: &str) -> Result<Array, Box<dyn Error>> {
        let at = self.header.find(&format!("\"{name}\":{{")).ok_or(format!("no array {name}"))?;
        let entry = &self.header[at..];
        let numbers = |key: &str| -> Result<Vec<usize>, Box<dyn Error>> {
            let rest = &entry[entry.find(key).ok_or(key)? + key.len()..];
            let inside = &rest[..rest.find(']').ok_or(key)?];
            Ok(inside.split(',').map(str::parse).collect::<Result<_, _>>()?)
        };
        let place = numbers("\"data_offsets\":[")?;
        let bytes = &self.data[place[0]..place[1]];
        let x = if entry[..entry.find('}').unwrap_or(0)].contains("\"BOOL\"") {
            bytes.iter().map(|&b| f64::from(b)).collect()
        } else {
            bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
        };
        Ok(Array { shape: numbers("\"shape\":[")?, x })
    }
}

fn write(path: &Path, arrays: &[(&str, &Array)]) -> Result<(), Box<dyn Error>> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, a) in arrays {
        let begin = data.len();
        a.x.iter().for_each(|x| data.extend(x.to_le_bytes()));
        let shape = a.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        entries.push(format!(
            "\"{LAYER}{name}\":{{\"dtype\":\"F64\",\"shape\":[{shape}],\"data_offsets\":[{begin},{}]}}",
            data.len()
        ));
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let length = (header.len() as u64).to_le_bytes();
    fs::create_dir_all(path.parent().ok_or("no folder")?)?;
    Ok(fs::write(path, [&length[..], header.as_bytes(), &data].concat())?)
}

/// softmax(q k^T / sqrt(d_k)) v for each row and head; masked keys have the weight 0.
fn attention(q: &Array, k: &Array, v: &Array, mask: &Array) -> [Array; 3] {
    let [batch, n_heads, n_q, d_k] = q.shape[..] else { panic!("q has four axes") };
    let (n_k, d_v) = (k.shape[2], v.shape[3]);
    let [mut scores, mut weights, mut heads] = [n_k, n_k, d_v]
        .map(|d| Array { shape: vec![batch, n_heads, n_q, d], x: Vec::new() });
    for row in 0..batch * n_heads * n_q {
        let (bh, may) = (row / n_q, &mask.x[row / n_q / n_heads * n_k..]);
        let s: Vec<f64> = (0..n_k)
            .map(|j| {
                let products = (0..d_k).map(|d| q.x[row * d_k + d] * k.x[(bh * n_k + j) * d_k + d]);
                products.sum::<f64>() / (d_k as f64).sqrt()
            })
            .collect();
        let allowed = (0..n_k).filter(|&j| may[j] != 0.0);
        let greatest = allowed.map(|j| s[j]).fold(f64::NEG_INFINITY, f64::max);
        let e = (0..n_k).map(|j| if may[j] != 0.0 { (s[j] - greatest).exp() } else { 0.0 });
        let e: Vec<f64> = e.collect();
        let sum: f64 = e.iter().sum();
        let w: Vec<f64> = e.iter().map(|e| e / sum).collect();
        heads.x.extend((0..d_v).map(|d| {
            (0..n_k).map(|j| w[j] * v.x[(bh * n_k + j) * d_v + d]).sum::<f64>()
        }));
        scores.x.extend(s);
        weights.x.extend(w);
    }
    [scores, weights, heads]
}

fn main() -> Result<(), Box<dyn Error>> {
    let folders: Vec<String> = env::args().skip(1).collect();
    let (ours, theirs) = (Path::new(&folders[0]), Path::new(&folders[1]));
    let forward = Safetensors::open(&ours.join("forward.safetensors"))?;
    let mask = Safetensors::open(&ours.join("inputs.safetensors"))?.array("source_mask")?;
    let of = |name: &str| forward.array(&format!("{LAYER}{name}"));
    let [scores, weights, heads] = attention(&of("q")?, &of("k")?, &of("v")?, &mask);
    let results = [("scores", &scores), ("weights", &weights), ("heads", &heads)];
    write(&theirs.join("forward.safetensors"), &results)?;
    println!("wrote {} numbers", scores.x.len() + weights.x.len() + heads.x.len());
    Ok(())
}
