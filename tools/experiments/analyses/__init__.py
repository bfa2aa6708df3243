"""What one experiment alone has: `write_section(results)`, and `draw(results)` where its picture is another."""
