//! Numbers, pages and plots.

use super::*;

#[test]
fn numbers_read_well() {
    for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(count(number), text);
    }
    for (size, text) in
        [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_600, "1.0 MB"), (12_345_678, "12 MB")]
    {
        assert_eq!(bytes(size), text);
    }
    for (value, text) in [(0.0, "0 %"), (0.00012, "1.2e-4 %"), (0.01, "0.010 %"), (52.21, "52.2 %")] {
        assert_eq!(percent(value), text);
    }
    assert_eq!((share(1, 0), share(1, 4)), (None, Some(25.0)));
    assert_eq!((percent_of(0, 0), percent_of(0, 9)), ("–".into(), "0 %".into()));
}

#[test]
fn nothing_from_a_dataset_becomes_markup() {
    let evil = "<script>alert('\"&')</script>";
    let mut page = Page::new(evil);
    page.heading(evil);
    page.paragraph(evil);
    page.verdict(false, evil, evil);
    page.facts(&[(evil, evil.into())]);
    let mut table = Table::new(evil, &[evil, "#n"]);
    table.row(&[evil, evil]);
    page.table(&table);
    page.push(&bar_chart(
        evil,
        &[Bar { label: evil.into(), value: 1.0, shown: evil.into(), mark: Some(2.0) }],
    ));
    page.push(&histogram(evil, evil, &[1, 0, 3]));
    let text = page.render();
    assert!(!text.contains("<script"), "{text}");
    assert_eq!(text.matches("&lt;script&gt;").count(), text.matches("alert(").count());
}

#[test]
fn a_page_asks_no_server_for_anything() {
    let mut page = Page::new("a");
    page.push(&histogram("lengths", "tokens", &[0; 12]));
    let plain = page.render();
    page.section("part", "A part");
    let mut table = Table::new("t", &["a", "#b"]).filterable(Some(0));
    table.cells(vec![Cell::text("x").link("part"), Cell::decimals(1.5, 2)]);
    page.table(&table);
    let text = page.render();
    for forbidden in ["http://", "https://", "src=", "@import", "url(", "fetch(", "XMLHttp"] {
        assert!(!text.contains(forbidden), "{forbidden}");
    }
    // Links lead to parts of the page only, and one without parts has none.
    assert_eq!(text.matches("href=").count(), text.matches("href=\"#").count());
    assert!(!plain.contains("href=") && !plain.contains("<script"), "{plain}");
}

#[test]
fn the_policy_allows_the_script_that_is_there_and_no_other() {
    use base64::Engine as _;
    use sha2::Digest as _;
    let mut page = Page::new("a");
    page.table(&Table::new("t", &["a"]).sortable());
    let text = page.render();
    let script = text.split("<script>").nth(1).and_then(|rest| rest.split("</script>").next()).unwrap();
    let digest = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(script));
    assert!(text.contains(&format!("default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; script-src 'sha256-{digest}'")), "{text}");
}

#[test]
fn tables_say_what_they_sort_by() {
    let mut table = Table::new("t", &["a", "#b", "#c"]).filterable(Some(0));
    table.cells(vec![Cell::text("x"), Cell::count(1234), Cell::missing()]);
    let mut page = Page::new("a");
    page.table(&table);
    let text = page.render();
    assert!(
        text.contains("<td class=\"number\" data-v=\"1234\">1,234</td><td class=\"number\">–</td>"),
        "{text}"
    );
    assert!(text.contains("<th scope=\"col\" data-facet>a</th>"), "{text}");
}

#[test]
fn times_read_well() {
    assert_eq!(moment(1_795_633_411), "Wed, 25 Nov 2026 19:03:31 GMT");
    for (seconds, text) in
        [(5.25, "5.2 s"), (61.0, "1 min 1 s"), (3_700.0, "1 h 1 min"), (90_000.0, "1 d 1 h")]
    {
        assert_eq!(duration(seconds), text);
    }
}

#[test]
fn every_plot_says_in_words_what_it_shows() {
    let bars = [Bar { label: "arXiv".into(), value: 0.5, shown: "50 %".into(), mark: None }];
    let chart = bar_chart("Shares", &bars);
    assert!(chart.contains("role=\"img\"") && chart.contains("<desc>arXiv: 50 %</desc>"), "{chart}");
    assert!(histogram("Lengths", "tokens", &[0, 2]).contains("<desc>2 to 4 tokens: 2</desc>"));
    assert!(histogram("Nothing", "tokens", &[]).contains("</svg>"));
}

/// The seven colors of series, as the style sheet has them for light (and print) and dark pages.
fn palettes() -> [Vec<[f64; 3]>; 3] {
    let style = include_str!("style.css");
    let blocks: Vec<&str> = style.split(":root {").skip(1).collect();
    let palette = |block: &str| {
        let color = |index: usize| {
            let from = block.split(&format!("--s{index}: #")).nth(1).unwrap();
            [0, 2, 4].map(|at| f64::from(u8::from_str_radix(&from[at..at + 2], 16).unwrap()) / 255.0)
        };
        (0..7).map(color).collect()
    };
    [palette(blocks[0]), palette(blocks[1]), palette(blocks[2])]
}

fn linear(color: [f64; 3]) -> [f64; 3] {
    color.map(|c| if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) })
}

fn times(matrix: [[f64; 3]; 3], color: [f64; 3]) -> [f64; 3] {
    matrix.map(|row| row.iter().zip(color).map(|(a, b)| a * b).sum::<f64>().clamp(0.0, 1.0))
}

/// CIE L*, a* and b* under D65, with a* and b* at 0.6: lines are thin, so lightness tells more than hue.
fn lightness_and_hue(linear: [f64; 3]) -> [f64; 3] {
    let to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]];
    let xyz = times(to_xyz, linear);
    let f = |value: f64| if value > 0.008856 { value.cbrt() } else { 7.787 * value + 16.0 / 116.0 };
    let [x, y, z] = [f(xyz[0] / 0.95047), f(xyz[1]), f(xyz[2] / 1.08883)];
    [116.0 * y - 16.0, 0.6 * 500.0 * (x - y), 0.6 * 200.0 * (y - z)]
}

/// Seen with each kind of color blindness (Machado, Oliveira and Fernandes 2009, full severity), every two series differ by
/// 20 units, ten times what can just be told apart side by side. The colors of before had 0.1 between two of them.
#[test]
fn colors_of_series_are_told_apart_by_color_blind_readers() {
    let eyes = [
        ("all cones", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        (
            "protanopia",
            [
                [0.152_286, 1.052_583, -0.204_868],
                [0.114_503, 0.786_281, 0.099_216],
                [-0.003_882, -0.048_116, 1.051_998],
            ],
        ),
        (
            "deuteranopia",
            [
                [0.367_322, 0.860_646, -0.227_968],
                [0.280_085, 0.672_501, 0.047_413],
                [-0.011_820, 0.042_940, 0.968_881],
            ],
        ),
        (
            "tritanopia",
            [
                [1.255_528, -0.076_749, -0.178_779],
                [-0.078_411, 0.930_809, 0.147_602],
                [0.004_733, 0.691_367, 0.303_900],
            ],
        ),
    ];
    for (sheet, colors) in ["light", "dark", "print"].into_iter().zip(palettes()) {
        for (eye, matrix) in eyes {
            let seen: Vec<_> =
                colors.iter().map(|&color| lightness_and_hue(times(matrix, linear(color)))).collect();
            for (a, b) in (0..7).flat_map(|a| (0..a).map(move |b| (a, b))) {
                let distance = seen[a].iter().zip(seen[b]).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
                assert!(distance > 20.0, "{sheet}, {eye}: series {b} and {a} differ by {distance:.1}");
            }
        }
    }
}
