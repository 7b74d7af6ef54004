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
    assert_eq!(share(1, 0), 0.0);
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
    let text = page.render();
    for forbidden in ["http://", "https://", "src=", "href=", "@import", "url("] {
        assert!(!text.contains(forbidden), "{forbidden}");
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
